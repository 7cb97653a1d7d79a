"""A headless Chromium for tests of pages, driven by the DevTools protocol over two pipes."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
KEYS = {"Delete": 46, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
        "ArrowDown": 40, "Tab": 9, " ": 32}  # fmt: skip


def find_chromium():
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page in a headless Chromium: open(), evaluate(), and a user's mouse and keys."""

    def __init__(self, seconds=600):
        self.seconds = seconds  # the longest that it waits for anything
        self.numbers = itertools.count(1)
        self.buffer = b""
        self.errors = []  # uncaught exceptions and console errors of the page
        self.requests = []  # what the page loads
        self.folder = tempfile.mkdtemp()
        command_end, self.commands = os.pipe()
        self.answers, answer_end = os.pipe()
        # Chromium reads commands from file 3 and writes to file 4; both end with a zero byte.
        wrapper = f'exec "$0" "$@" 3<&{command_end} 4>&{answer_end}'
        self.process = subprocess.Popen(
            ["bash", "-c", wrapper, find_chromium(), "--headless", "--no-sandbox", "--disable-gpu",
             "--disable-background-networking", "--no-first-run", "--remote-debugging-pipe",
             f"--user-data-dir={self.folder}", "about:blank"],
            pass_fds=(command_end, answer_end), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(command_end)
        os.close(answer_end)
        self.session = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        self.process.terminate()
        self.process.wait(20)
        os.close(self.commands)
        os.close(self.answers)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def call(self, method, **params):
        """Send a command and wait for its answer; note what the page reports meanwhile."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:  # a pipe takes 64 kB at a time
            data = data[os.write(self.commands, data) :]
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.note(answer)

    def receive(self):
        while b"\0" not in self.buffer:
            if not select.select([self.answers], [], [], self.seconds)[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self.answers, 2**20)
            if not part:
                raise RuntimeError("the browser has ended")
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

    def note(self, event):
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", str(details)))
            case "Runtime.consoleAPICalled" if params["type"] == "error":
                self.errors.append(str(params["args"]))
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])

    def open(
        self, path, width=1400, height=1000, scheme="light", touch=False,
        ready="typeof explore === 'object'",
    ):  # fmt: skip
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=touch,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.requests.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait_for(f"document.readyState === 'complete' && {ready}")

    def wait_for(self, condition):
        deadline = time.monotonic() + self.seconds
        while not self.evaluate(f"Boolean({condition})"):
            time.sleep(0.1)
            if time.monotonic() > deadline:
                raise TimeoutError(f"the page never had {condition}; its errors: {self.errors}")

    def evaluate(self, expression):
        """The value of a JavaScript expression; promises are awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    def settle(self):
        """Wait until the page has drawn twice, so that what was asked for is done."""
        self.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def place(self, selector, x=0.5, y=0.5):
        """The point at fractions of an element's width and height, scrolled into view."""
        self.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.evaluate(
            f"(({{left, top, width, height}}) => [left, top, width, height])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        return box[0] + x * box[2], box[1] + y * box[3]

    def mouse(self, kind, x, y, held=0):
        button = "left" if kind != "mouseMoved" or held else "none"
        self.call(
            "Input.dispatchMouseEvent",
            type=kind, x=x, y=y, button=button, buttons=held, clickCount=1,
        )  # fmt: skip

    def click(self, selector, x=0.5, y=0.5):
        self.drag(selector, (x, y))

    def drag(self, selector, *points):
        """Press the mouse at the first point, move to the others, release it at the last."""
        places = [self.place(selector, *point) for point in points]
        self.mouse("mousePressed", *places[0], held=1)
        for point in places[1:]:
            self.mouse("mouseMoved", *point, held=1)
        self.mouse("mouseReleased", *places[-1])
        self.settle()

    def press(self, *keys):
        """Press keys on the element that has the focus."""
        for key in keys:
            code = KEYS.get(key, ord(key.upper()) if len(key) == 1 else 0)
            text = {"text": key} if len(key) == 1 else {}
            facts = {"key": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type="keyDown", **facts, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **facts)
        self.settle()

    def focus(self, selector):
        self.evaluate(f"document.querySelector({selector!r}).focus()")

    def screenshot(self, path, whole=True):
        options = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options = {"clip": {**size, "scale": 1}, "captureBeyondViewport": True}
        answer = self.call("Page.captureScreenshot", format="png", **options)
        path.write_bytes(base64.b64decode(answer["data"]))
