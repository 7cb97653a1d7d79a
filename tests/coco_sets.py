"""What the COCO tests share: small sets, the command prepare_coco, a loopback server."""

import contextlib
import copy
import http.server
import io
import json
import threading
import time
from pathlib import Path

import numpy as np
import prepare_coco
from coco_annotations import CocoAnnotations
from coco_single_object import CocoSelection
from coco_synthetic import draw_synthetic_coco
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("cake", "dog", "motorcycle")


def draw(folder, *, split="train", number=16, seed=3):
    """A small synthetic set: (folder of its images, annotation file)."""
    file = draw_synthetic_coco(folder, split, number, seed=seed, progress=False)
    return Path(folder, split), file


def select(file, classes=CLASSES, **options):
    return CocoSelection(CocoAnnotations(file, progress=False), classes, **options)


def prepare(
    images, file, out, *, classes=CLASSES, workers=1, split="train", image_size=64, **options
):
    """Prepares a set: (the CocoPreparer, the path of the manifest)."""
    preparer = prepare_coco.CocoPreparer(
        select(file, classes, **options), image_size=image_size, split=split
    )
    return preparer, preparer.write(images, out, workers=workers, progress=False)


def small_set(folder, *, name="1.jpg", size=(40, 30)):
    """The JSON of one image with one object of the class 'dog', to be spoiled by a test."""
    (folder / "images").mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(folder / "images" / name)
    return {
        "images": [{"id": 1, "file_name": name, "width": size[0], "height": size[1]}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 61, "name": "cake"}],
        "annotations": [
            {
                "id": 7,
                "image_id": 1,
                "category_id": 18,
                "iscrowd": 0,
                "bbox": [5.0, 5.0, 20.0, 15.0],
                "segmentation": [[5, 5, 25, 5, 25, 20, 5, 20]],
            }
        ],
    }


def run_with_a_good_image(folder, data):
    """Adds a sound image 100 to data, writes the JSON, and returns the command's result."""
    data = copy.deepcopy(data)
    other = small_set(folder, name="good.jpg")
    data["images"].append({**other["images"][0], "id": 100, "file_name": "good.jpg"})
    data["annotations"].append({**other["annotations"][0], "id": 700, "image_id": 100})
    file = folder / "instances.json"
    file.write_text(json.dumps(data))
    return run_small(folder, "--images-dir", folder / "images", "--image-size", 16)


def run_small(folder, *arguments):
    """The command on folder/instances.json: dogs of 10x10 pixels or more, to folder/out."""
    return run(
        *("--annotations", folder / "instances.json", "--classes", "dog", "--min-bbox", 10),
        *("--out", folder / "out"),
        *arguments,
    )


def run(*arguments):
    """The command line: (exit code, lines of the error output, text of the output)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = prepare_coco.main([str(argument) for argument in arguments])
        except SystemExit as error:  # of argparse
            code = error.code
    return code, [line for line in err.getvalue().splitlines() if line.strip()], out.getvalue()


def tree(folder):
    """{path in the folder: content} of all its files."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


class Server:
    """A loopback server whose answers to each path follow a plan; the last one repeats.

    "ok" serves the file (with `tags` also parts of it), a number is an error code, and the other
    words name what goes wrong. `asked` keeps the headers of every request.
    """

    def __init__(self, files, plans=None, tags=None, retry_after=None):
        self.files, self.plans, self.tags = files, plans or {}, tags or {}
        self.retry_after = retry_after
        self.requests, self.asked = [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                outer.asked.append(dict(self.headers))
                plan = outer.plans.get(self.path, ["ok"])
                tries = outer.requests.count(self.path)
                outer.answer(self, plan[min(tries, len(plan)) - 1])

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler, action):
        content, tag = self.files.get(handler.path), self.tags.get(handler.path)
        if action == "drop":
            handler.connection.close()
            return
        if isinstance(action, int) or content is None:
            handler.send_response(action if isinstance(action, int) else 404)
            if self.retry_after is not None:
                handler.send_header("Retry-After", str(self.retry_after))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if action == "file":
            handler.send_response(302)
            handler.send_header("Location", "file:///etc/hostname")
            handler.end_headers()
            return
        start = self.first_byte(handler, tag, len(content)) if action != "no range" else 0
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if tag:
            handler.send_header("ETag", tag)
        body = content[start:]
        lengths = {"long": len(body) + 100, "short": len(body) // 2}
        handler.send_header("Content-Length", str(lengths.get(action, len(body))))
        handler.end_headers()
        if action == "delay":
            time.sleep(0.6)
        bodies = {"truncate": body[: len(body) // 2], "garbage": bytes(len(body))}
        with contextlib.suppress(OSError):
            handler.wfile.write(bodies.get(action, body))

    @staticmethod
    def first_byte(handler, tag, length):
        asked = handler.headers.get("Range", "")
        if not tag or not asked or handler.headers.get("If-Range") != tag:
            return 0
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        return start if start < length else 0

    def close(self):
        self.server.shutdown()
        self.server.server_close()
