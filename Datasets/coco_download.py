"""Downloads COCO's annotation archive, and the images of a selection one by one.

COCO's archives of images have 19 GB. Three classes need only some hundred MB of them, so this file
fetches single images. `requests` and urllib3's `Retry` do the work of a client: they reuse
connections, try again after growing waits, and respect the wait that a server asks for. This file
adds the rest: it checks the content before a file gets its name, it continues a broken download of
the archive where it stopped, and Ctrl-C ends every wait.
"""

import contextlib
import hashlib
import io
import json
import re
import threading
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import requests
from coco_annotations import is_web_address
from coco_images import read_image
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import InvalidHeader, MaxRetryError, ProtocolError
from urllib3.util import Retry

from SegStudio import SegStudio
from SegStudio.backstage import progress_bar

# COCO's host has no certificate, but its storage has one: the same files, by HTTPS.
COCO_HOST = "http://images.cocodataset.org/"
COCO_HTTPS = "https://s3.amazonaws.com/images.cocodataset.org/"
ANNOTATIONS_URL = COCO_HTTPS + "annotations/annotations_trainval2017.zip"
ANNOTATIONS_MD5 = "f4bbac642086de4f52a3fdda2de5fa2c"
ANNOTATION_FILES = ("instances_train2017.json", "instances_val2017.json")

BLOCK = 2**16  # bytes that are read at once
NO_SUCH_RANGE = 416  # the HTTP code for a Range that is not in the file
HEADERS = {"User-Agent": "SegStudio", "Accept-Encoding": "identity"}  # uncompressed: true lengths


class DownloadError(OSError):
    """A file could not be fetched; the message gives the reason."""


class NoConnection(DownloadError):
    """The server could not be reached, or did not answer."""


class UnknownArchive(ValueError):
    """A zip archive that is not the known one."""


class StoppableRetry(Retry):
    """urllib3's Retry, with waits that an event can end and that have a maximum."""

    LONGEST_WAIT = 60.0  # seconds
    stopped = None  # a threading.Event
    announce = None  # a function, called with the seconds of a long wait

    def new(self, **changes):
        retry = super().new(**changes)
        retry.stopped, retry.announce = self.stopped, self.announce
        return retry

    def sleep(self, response=None):
        seconds = None
        if response is not None:
            with contextlib.suppress(InvalidHeader):
                seconds = self.get_retry_after(response)
        seconds = min(seconds or self.get_backoff_time(), self.LONGEST_WAIT)
        if seconds >= 4:
            self.announce(seconds)
        if self.stopped.wait(seconds):
            raise DownloadError("the download was stopped")


class CocoDownloader:
    """Fetches COCO's annotation archive and the images of a selection.

    Temporary faults are tried again up to `retries` times: a broken or stalled connection, the
    answers 408, 429 and 5xx, contents that fail their check. Other answers (404) are final. A file
    gets its name only after its check, so an interrupted download, run again, fetches what is
    missing. A fault of this machine (a full disk, no right to write) or a network that is down ends
    the run with an OSError. An image that cannot be fetched does not end the run.

    Source: https://cocodataset.org/#download
    """

    MAX_IMAGE_BYTES = 2**25
    MAX_ARCHIVE_BYTES = 2**32
    PROGRESS_BYTES = 2**20  # an attempt that fetched so much is not a failure

    def __init__(self, *, workers=8, retries=4, backoff=1.0, timeout=30.0, progress=True):
        self.workers = workers
        self.timeout = timeout
        self.progress = progress
        self.stopped = threading.Event()
        self.retry = StoppableRetry(
            total=retries,
            backoff_factor=backoff,
            status_forcelist=(408, 429, 500, 502, 503, 504),
            allowed_methods=("GET",),
            raise_on_status=False,  # return the last answer, so that the error can name its code
        )
        self.retry.stopped, self.retry.announce = self.stopped, self._announce
        self._announced = 0.0  # when the last wait was announced
        # requests opens http: and https: only; file: and ftp: addresses have no adapter.
        self.session = requests.Session()
        self.session.headers.update(HEADERS)
        adapter = HTTPAdapter(pool_maxsize=workers, max_retries=self.retry)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)

    # ---- images ----------------------------------------------------------------------------------

    def fetch_images(self, records, folder):
        """Fetches the images of COCO's image records: {image id: path, or a DownloadError}.

        The files are named after the ids, as in COCO; names in the JSON are not used.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        results = {}
        with ThreadPoolExecutor(self.workers) as pool:
            tasks = {pool.submit(self._fetch_image, record, folder): record["id"]
                     for record in records}  # fmt: skip
            try:
                for task in self._bar(as_completed(tasks), desc="download", total=len(tasks),
                                      unit="image"):  # fmt: skip
                    results[tasks[task]] = task.result()
                    self._stop_without_network(results.values())
            except BaseException:  # Ctrl-C or a full disk: stop all threads
                self.stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
        return dict(sorted(results.items()))

    def _stop_without_network(self, results):
        """Ends the run if all of the first images failed because there was no connection."""
        if len(results) == 2 * self.workers and all(isinstance(r, NoConnection) for r in results):
            raise next(iter(results))

    def _fetch_image(self, record, folder):
        path = folder / f"{record['id']:012d}.jpg"
        if path.is_file():
            with contextlib.suppress(ValueError):  # damaged: fetch it again
                read_image(path, record)
                return path
        try:
            content = self._fetch_content(record.get("coco_url") or "", record)
        except DownloadError as error:
            return error
        SegStudio.write_atomically(path, lambda part: part.write_bytes(content))
        return path

    def _fetch_content(self, url, record):
        """The bytes of one image, checked by decoding them."""
        retry = self.retry
        while True:
            with self._open(url) as response:
                try:
                    content = b"".join(self._blocks(response, self.MAX_IMAGE_BYTES))
                    read_image(io.BytesIO(content), record)
                    return content
                except ValueError as fault:
                    retry = self._wait(retry, url, fault)

    # ---- the annotation archive ------------------------------------------------------------------

    def fetch_annotations(self, folder, *, url=ANNOTATIONS_URL, md5=ANNOTATIONS_MD5,
                          names=ANNOTATION_FILES):  # fmt: skip
        """Fetches the archive, unpacks the files `names` and returns their paths.

        The archive is deleted after unpacking, but kept if the disk is full. After an interruption,
        the next call continues from the part that was fetched.

        Errors: DownloadError; ValueError for an archive that is damaged or not COCO's.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / name for name in names]
        if all(file.is_file() for file in files):
            return files
        archive = folder / "annotations_trainval2017.zip"
        if not archive.is_file():
            self._fetch_archive(url, archive, md5)
        try:
            with zipfile.ZipFile(archive) as opened:
                for file in files:
                    self._unpack(opened, f"annotations/{file.name}", file)
        except (KeyError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            archive.unlink()
            raise ValueError(
                f"The archive from {url} is not COCO's archive ({error}); it was deleted."
            ) from None
        except OSError as error:
            raise OSError(f"{error}; the archive is kept for the next run") from error
        archive.unlink()
        return files

    def _unpack(self, archive, member, file):
        """Writes one member to `file`; the paths in the archive are never used."""
        size = archive.getinfo(member).file_size
        if size > self.MAX_ARCHIVE_BYTES:
            raise zipfile.BadZipFile(f"{member} is larger than COCO's")
        with archive.open(member) as packed:

            def copy(part):
                with (
                    part.open("wb") as target,
                    self._bar(desc="unpacking", total=size, unit="B", unit_scale=True) as bar,
                ):
                    while block := packed.read(2**20):
                        target.write(block)
                        bar.update(len(block))

            SegStudio.write_atomically(file, copy)

    def _fetch_archive(self, url, archive, md5):
        """Fetches the archive; each attempt continues the one before."""
        part = archive.with_name(archive.name + ".part")
        retry = self.retry
        while True:
            before = size_of(part)
            try:
                self._continue_archive(url, part)
                check_archive(part, md5)
                break
            except UnknownArchive as fault:
                if before == 0:  # one whole download: trying again would not help
                    raise not_fetched(url, fault) from fault
                retry = self._wait(retry, url, fault)
            except ValueError as fault:
                if size_of(part) - before >= self.PROGRESS_BYTES:
                    retry = self.retry  # the download advances: reset the count of failures
                retry = self._wait(retry, url, fault)
        part.replace(archive)
        state_file(part).unlink(missing_ok=True)

    def _continue_archive(self, url, part):
        """One attempt. Appends to `part` if it is the beginning of the file on the server."""
        state = read_state(part, url)
        start = size_of(part) if state else 0
        if start and start == state["length"]:
            return
        headers = {}
        if start:
            # "Send the rest if the file is still the same one, else all of it."
            headers = {"Range": f"bytes={start}-", "If-Range": state["validator"]}
        with self._open(url, headers) as response:
            if response.status_code == 200:  # the whole file
                start = 0
                forget(part)
                write_state(part, url, response)
            elif not continues(response, start, state):
                forget(part)
                raise ValueError("the file on the server has changed")
            length = response.headers.get("Content-Length", "")
            total = start + int(length) if length.isdecimal() else None
            try:
                with (
                    part.open("ab") as target,
                    self._bar(desc="annotations", total=total, initial=start, unit="B",
                              unit_scale=True) as bar,
                ):  # fmt: skip
                    for block in self._blocks(response, self.MAX_ARCHIVE_BYTES - start):
                        target.write(block)
                        bar.update(len(block))
            except DownloadError:
                raise
            except OSError as error:
                raise OSError(
                    f"{part} could not be written ({error}); what was fetched is kept for the next "
                    f"run"
                ) from error

    # ---- one request -----------------------------------------------------------------------------

    def _open(self, url, headers=None):
        """The response to a GET; DownloadError if all of the session's attempts failed."""
        if not is_web_address(url):
            raise DownloadError(f"its address {ascii(url)[:80]} is not an http(s) address")
        if url.startswith(COCO_HOST):
            url = COCO_HTTPS + url.removeprefix(COCO_HOST)
        try:
            response = self.session.get(url, headers=headers, stream=True, timeout=self.timeout)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise not_fetched(url, plain_reason(error), NoConnection) from error
        except (requests.RequestException, ValueError) as error:  # ValueError: an odd address
            raise not_fetched(url, plain_reason(error)) from error
        if response.status_code >= 400 and response.status_code != NO_SUCH_RANGE:
            response.close()
            raise not_fetched(url, f"the server answered {response.status_code}")
        return response

    def _blocks(self, response, max_bytes):
        """The body in blocks. ValueError for a temporary fault."""
        received, length = 0, response.headers.get("Content-Length", "?")
        try:
            for block in response.iter_content(BLOCK):
                received += len(block)
                if received > max_bytes:
                    raise not_fetched(response.url, f"more than {max_bytes} bytes came")
                if self.stopped.is_set():
                    raise not_fetched(response.url, "the download was stopped")
                yield block
        except requests.RequestException as error:
            raise ValueError(
                f"the connection broke after {received} of {ascii(length)[1:-1]} bytes"
            ) from error
        if length.isdecimal() and received < int(length):
            raise ValueError(f"the connection broke after {received} of {length} bytes")

    def _wait(self, retry, url, fault):
        """Waits before the next attempt; DownloadError if there are none left."""
        try:
            retry = retry.increment("GET", url, error=ProtocolError(str(fault)))
        except MaxRetryError:
            raise not_fetched(url, fault) from fault
        retry.sleep()
        return retry

    def _announce(self, seconds):
        """Prints that the program waits, once for all threads, so that it does not look dead."""
        now = time.monotonic()
        if self.progress and now - self._announced > 3:
            self._announced = now
            tqdm.write(f"No answer, or no complete one; trying again in {seconds:.0f} s.")

    def _bar(self, items=None, **options):
        return progress_bar(items, disable=not self.progress, **options)


def not_fetched(url, reason, kind=DownloadError):
    # ascii(): the text of a server may contain codes that control a terminal.
    return kind(f"{ascii(url)[1:-1]} could not be fetched: {reason}")


def plain_reason(error):
    """An exception of requests in plain words."""
    if isinstance(error, requests.Timeout):
        return "the server did not answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "there is no secure connection to the server"
    if isinstance(error, requests.ConnectionError):
        cause = getattr(error.args[0] if error.args else None, "reason", error)
        text = re.sub(r"^(<[^>]*>|\w+\([^)]*\)): ", "", str(cause))  # "HTTPConnection(host=...): "
        return f"there is no connection to the server ({ascii(text)[1:-1][:120]})"
    return ascii(str(error))[1:-1][:200] or type(error).__name__


# ---- the part of an archive, and the file beside it that describes the archive -------------------


def state_file(part):
    return part.with_name(part.name + ".json")


def size_of(part):
    return part.stat().st_size if part.is_file() else 0


def read_state(part, url):
    """The facts about `part`: {"url", "length", "validator"}; None if it cannot be continued."""
    try:
        state = json.loads(state_file(part).read_text(encoding="utf-8"))
        usable = state["url"] == url and state["validator"] and size_of(part) <= state["length"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if usable else None


def write_state(part, url, response):
    """Writes down which version of the file `part` belongs to, before its first byte."""
    validator = response.headers.get("ETag", "")
    if not validator or validator.startswith("W/"):  # weak: other bytes may have the same tag
        validator = response.headers.get("Last-Modified", "")
    length = response.headers.get("Content-Length", "")
    if validator and length.isdecimal():
        text = json.dumps({"url": url, "length": int(length), "validator": validator})
        SegStudio.write_atomically(
            state_file(part), lambda file: file.write_text(text, encoding="utf-8")
        )


def continues(response, start, state):
    """Whether an answer is the rest, from `start` on, of the file that `state` describes."""
    if response.status_code != 206 or not start:
        return False
    sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if not sent or (int(sent[1]), int(sent[2])) != (start, state["length"]):
        return False
    seen = [response.headers.get(name) for name in ("ETag", "Last-Modified")]
    return state["validator"] in seen or seen == [None, None]


def forget(part):
    part.unlink(missing_ok=True)
    state_file(part).unlink(missing_ok=True)


def check_archive(part, md5):
    """Deletes a file that is not the archive, and raises ValueError with the reason."""
    if not zipfile.is_zipfile(part):
        forget(part)
        raise ValueError("the file is not a zip archive")
    if md5:
        digest = hashlib.md5(usedforsecurity=False)
        with part.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        if digest.hexdigest() != md5:
            forget(part)
            raise UnknownArchive(
                f"the file is not the known archive (its MD5 is {digest.hexdigest()}, not {md5})"
            )
