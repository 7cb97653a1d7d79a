"""Downloads, against a loopback server that drops, stalls, cuts short and lies."""

import errno
import hashlib
import io
import json
import re
import threading
import time
import zipfile

import coco_download
import numpy as np
import pytest
import requests
from coco_download import CocoDownloader, DownloadError
from coco_sets import Server, run_small, small_set
from PIL import Image

from SegStudio import SegStudio


@pytest.fixture
def serve():
    """Starts loopback servers: serve(files, plans=None, ...) -> Server."""
    servers = []

    def start(*arguments, **options):
        servers.append(Server(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def downloader(**options):
    options = {"backoff": 0.005, "timeout": 0.3, "progress": False, "workers": 4, **options}
    return CocoDownloader(**options)


def jpeg(seed):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def records(server, number):
    return [
        {"id": k, "file_name": "../x", "width": 40, "height": 30, "coco_url": f"{server.url}/{k}"}
        for k in range(1, number + 1)
    ]


def full_disk(path, write):
    raise OSError(errno.ENOSPC, "No space left on device")


# ---- images -------------------------------------------------------------------------------------


def test_download_gets_over_every_passing_fault(serve, tmp_path):
    faults = ["drop", "truncate", "delay", 500, 503, 429, 408, "long", "short", "garbage"]
    files = {f"/{k}": jpeg(k) for k in range(1, len(faults) + 1)}
    server = serve(files, {f"/{k}": [fault, "ok"] for k, fault in enumerate(faults, 1)})
    results = downloader().fetch_images(records(server, len(faults)), tmp_path)
    for k in range(1, len(faults) + 1):
        assert results[k] == tmp_path / f"{k:012d}.jpg"
        assert results[k].read_bytes() == files[f"/{k}"]
        assert server.requests.count(f"/{k}") == 2
    assert len(list(tmp_path.iterdir())) == len(faults)  # no .part is left


def test_download_gives_up_with_a_reason_and_continues(serve, tmp_path):
    files = {f"/{k}": jpeg(k) for k in range(1, 6)}
    server = serve(files, {"/2": [404], "/3": ["drop"], "/4": ["truncate"]})
    first = downloader(retries=2).fetch_images(records(server, 5), tmp_path)
    assert [k for k, v in first.items() if isinstance(v, DownloadError)] == [2, 3, 4]
    assert "the server answered 404" in str(first[2])
    assert "no connection" in str(first[3])
    assert re.search(r"broke after \d+ of \d+ bytes", str(first[4]))
    assert all(len(str(first[k])) < 300 and str(first[k]).isprintable() for k in (2, 3, 4))
    tries = {k: server.requests.count(f"/{k}") for k in range(1, 6)}
    assert tries == {1: 1, 2: 1, 3: 3, 4: 3, 5: 1}
    server.plans, server.requests[:] = {}, []
    (tmp_path / f"{5:012d}.jpg").write_bytes(b"spoiled")
    second = downloader().fetch_images(records(server, 5), tmp_path)
    assert all(v.read_bytes() == files[f"/{k}"] for k, v in second.items())
    assert sorted(server.requests) == ["/2", "/3", "/4", "/5"]
    server.requests.clear()
    downloader().fetch_images(records(server, 5), tmp_path)
    assert server.requests == []


def test_a_network_that_is_down_ends_the_run(tmp_path):
    """Not thousands of images, each of which waits for its retries."""
    wanted = [
        {"id": k, "width": 40, "height": 30, "coco_url": "http://127.0.0.1:1/x"} for k in range(99)
    ]
    with pytest.raises(DownloadError, match="no connection to the server .*refused"):
        downloader(workers=2, retries=1).fetch_images(wanted, tmp_path)


def test_download_refuses_other_sizes_and_addresses(serve, tmp_path):
    server = serve({"/1": jpeg(1)}, {"/6": ["file"]})
    server.files["/6"] = jpeg(6)
    wanted = records(server, 1) + [
        {"id": 2, "width": 40, "height": 30, "coco_url": (tmp_path / "x.jpg").as_uri()},
        {"id": 3, "width": 40, "height": 30, "coco_url": "ftp://127.0.0.1/x"},
        {"id": 4, "width": 40, "height": 30},
        {"id": 5, "width": 40, "height": 30, "coco_url": "http://127.0.0.1:1/\r\nx"},
        {"id": 6, "width": 40, "height": 30, "coco_url": f"{server.url}/6"},
        {"id": 7, "width": 40, "height": 30, "coco_url": "http://[::bad/"},
        {"id": 8, "width": 40, "height": 30, "coco_url": ["http://x"]},
    ]
    (tmp_path / "x.jpg").write_bytes(jpeg(2))
    wanted[0]["width"] = 41
    results = downloader(retries=1).fetch_images(wanted, tmp_path / "out")
    assert all(isinstance(v, DownloadError) for v in results.values())
    assert "40x30" in str(results[1])
    assert all("http(s)" in str(results[k]) for k in (2, 3, 4, 8))
    assert all(str(v).isprintable() for v in results.values())
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_ends_the_run(serve, tmp_path, monkeypatch):
    server = serve({f"/{k}": jpeg(k) for k in range(1, 4)})
    monkeypatch.setattr(SegStudio, "write_atomically", full_disk)
    with pytest.raises(OSError, match="No space"):
        downloader(backoff=60).fetch_images(records(server, 3), tmp_path)


def waits_of(tool, monkeypatch):
    """Notes the waits of a downloader instead of waiting."""
    waits = []
    monkeypatch.setattr(tool.stopped, "wait", lambda seconds: waits.append(seconds))
    return waits


@pytest.mark.parametrize("fault", [500, "truncate"])
def test_download_waits_longer_each_time(serve, tmp_path, monkeypatch, fault):
    server = serve({"/1": jpeg(1)}, {"/1": [fault]})
    tool = downloader(backoff=0.5, retries=4)
    waits = waits_of(tool, monkeypatch)
    result = tool.fetch_images(records(server, 1), tmp_path)
    assert isinstance(result[1], DownloadError)
    assert waits == [0, 1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("asked", "waited"), [(7, 7), (100_000, 60), ("soon", 0)], ids=["seconds", "hours", "text"]
)
def test_retry_after_is_honoured_within_reason(serve, tmp_path, monkeypatch, asked, waited):
    server = serve({"/1": jpeg(1)}, {"/1": [429, "ok"]}, retry_after=asked)
    tool = downloader()
    waits = waits_of(tool, monkeypatch)
    result = tool.fetch_images(records(server, 1), tmp_path)
    assert result[1].is_file()
    assert waits == [waited]


def test_endless_answer_is_cut(serve, tmp_path, monkeypatch):
    server = serve({"/1": jpeg(1)})
    monkeypatch.setattr(CocoDownloader, "MAX_IMAGE_BYTES", 100)
    result = downloader(retries=3).fetch_images(records(server, 1), tmp_path)
    assert "more than 100 bytes" in str(result[1])
    assert len(server.requests) == 1


@pytest.mark.parametrize("plan", [[503], ["truncate"]])
def test_an_interruption_ends_all_waits(serve, tmp_path, monkeypatch, plan):
    """Ctrl-C, while every thread waits for a minute."""
    server = serve({f"/{k}": jpeg(k) for k in range(1, 9)}, {f"/{k}": plan for k in range(2, 9)})
    tool = downloader(backoff=60, retries=9)

    def interrupted(tasks, **options):
        next(iter(tasks))
        time.sleep(0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "_bar", interrupted)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        tool.fetch_images(records(server, 8), tmp_path)
    assert time.monotonic() - start < 60, "not even one of the waits was sat out"
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_cocos_own_addresses_are_fetched_by_https(monkeypatch):
    asked = []

    def get(url, **options):
        asked.append(url)
        raise requests.ConnectionError("no network here")

    tool = downloader()
    monkeypatch.setattr(tool.session, "get", get)
    with pytest.raises(DownloadError):
        tool._open("http://images.cocodataset.org/train2017/000000000009.jpg")
    assert asked == ["https://s3.amazonaws.com/images.cocodataset.org/train2017/000000000009.jpg"]
    assert coco_download.ANNOTATIONS_URL.startswith("https://")
    assert re.fullmatch("[0-9a-f]{32}", coco_download.ANNOTATIONS_MD5)


# ---- the annotation archive ---------------------------------------------------------------------

TRAIN, VAL = (f"annotations/instances_{name}2017.json" for name in ("train", "val"))
ZIP = "annotations_trainval2017.zip"


def archive(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return stream.getvalue()


@pytest.fixture(scope="module")
def large_archive():
    """Some 4 MB: several blocks, and more than an attempt has to bring to count as progress."""
    noise = np.random.default_rng(0).bytes(4_000_000)
    return archive({TRAIN: noise, VAL: b"{}"})


def fetch(tool, server, folder, path="/a.zip", **options):
    """fetch_annotations from a loopback server, whose archive has no known hash."""
    return tool.fetch_annotations(folder, url=server.url + path, **{"md5": None, **options})


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_annotation_archive_unpacks_only_what_is_wanted(serve, tmp_path):
    members = {
        "../evil.json": b"evil",
        "/tmp/evil.json": b"evil",
        "annotations/../../evil.json": b"evil",
        "annotations/captions_train2017.json": b"{}",
        TRAIN: b'{"a": 1}',
        VAL: b'{"b": 2}',
    }
    server = serve({"/a.zip": archive(members)}, {"/a.zip": ["truncate", 500, "garbage", "ok"]})
    folder = tmp_path / "deep" / "downloads"
    files = fetch(downloader(), server, folder)
    assert [f.read_bytes() for f in files] == [b'{"a": 1}', b'{"b": 2}']
    assert names(tmp_path) == [
        f"deep/downloads/instances_{split}2017.json" for split in ("train", "val")
    ]
    fetch(downloader(), server, folder)
    assert len(server.requests) == 4


def test_fetching_and_unpacking_the_archive_have_a_bar(serve, tmp_path, large_archive, monkeypatch):
    bars, bar = {}, coco_download.progress_bar

    def noted(items=None, **options):
        return bars.setdefault(options["desc"], bar(items, **options))

    monkeypatch.setattr(coco_download, "progress_bar", noted)
    fetch(downloader(progress=True), serve({"/a.zip": large_archive}), tmp_path)
    assert bars["annotations"].n == bars["annotations"].total == len(large_archive)
    assert bars["unpacking"].n == bars["unpacking"].total == 4_000_000


def test_annotation_archive_without_the_member_or_damaged(serve, tmp_path):
    content = archive({TRAIN: bytes(5000), VAL: b"{}"})
    spoiled = bytearray(content)
    spoiled[len(TRAIN) + 31] ^= 255
    files = {"/none.zip": archive({"x": b"x"}), "/bad.zip": bytes(spoiled)}
    server = serve(files)
    for path in files:
        with pytest.raises(ValueError, match="not COCO's archive"):
            fetch(downloader(), server, tmp_path, path)
        assert names(tmp_path) == []


def test_the_known_hash(serve, tmp_path):
    content = archive({TRAIN: b"{}", VAL: b"{}"})
    server = serve({"/a.zip": content})
    with pytest.raises(DownloadError, match="not the known archive"):
        fetch(downloader(), server, tmp_path, md5="0" * 32)
    assert len(server.requests) == 1  # 241 MB: not again and again
    assert names(tmp_path) == []
    files = fetch(downloader(), server, tmp_path, md5=hashlib.md5(content).hexdigest())
    assert all(file.is_file() for file in files)


def ranges(server):
    return [headers.get("Range") for headers in server.asked]


def test_archive_continues_where_it_stopped(serve, tmp_path, large_archive):
    """Within one call, and in a second run after the first one gave up."""
    server = serve(
        {"/a.zip": large_archive}, {"/a.zip": ["truncate", 404]}, tags={"/a.zip": '"one"'}
    )
    with pytest.raises(DownloadError, match="404"):
        fetch(downloader(), server, tmp_path)
    half = (tmp_path / f"{ZIP}.part").stat().st_size
    assert 0.4 < half / len(large_archive) < 0.6
    server.plans = {}
    fetch(downloader(), server, tmp_path)
    assert ranges(server) == [None, f"bytes={half}-", f"bytes={half}-"]
    assert server.asked[-1]["If-Range"] == '"one"'
    assert names(tmp_path) == ["instances_train2017.json", "instances_val2017.json"]


def test_an_attempt_that_advances_is_no_failure(serve, tmp_path, large_archive, monkeypatch):
    monkeypatch.setattr(CocoDownloader, "PROGRESS_BYTES", 1000)
    server = serve(
        {"/a.zip": large_archive}, {"/a.zip": ["truncate"] * 4 + ["ok"]}, tags={"/a.zip": '"one"'}
    )
    fetch(downloader(retries=1), server, tmp_path)
    assert len(server.requests) == 5


@pytest.mark.parametrize("how", ["tag", "no tag", "length", "no range", "address", "state"])
def test_a_changed_file_is_not_glued_together(serve, tmp_path, large_archive, how):
    other = archive({TRAIN: np.random.default_rng(1).bytes(4_000_000), VAL: b"[]"})
    files = {"/a.zip": large_archive, "/b.zip": other}
    server = serve(files, {"/a.zip": ["truncate", 404]}, tags=dict.fromkeys(files, '"one"'))
    if how == "no tag":
        server.tags = {}
    with pytest.raises(DownloadError):
        fetch(downloader(retries=1), server, tmp_path)
    server.plans, path = {}, "/a.zip"
    if how == "address":
        path = "/b.zip"
    else:
        files["/a.zip"] = other
    if how == "tag":
        server.tags = {"/a.zip": '"two"'}
    if how == "length":
        files["/a.zip"] = other = archive({TRAIN: bytes(other), VAL: b"longer"})
    if how == "no range":
        server.plans = {"/a.zip": ["no range"]}
    if how == "state":
        (tmp_path / f"{ZIP}.part.json").write_text('{"url": ')
    found = fetch(downloader(), server, tmp_path, path)
    with zipfile.ZipFile(io.BytesIO(other)) as opened:
        assert found[0].read_bytes() == opened.read(TRAIN)


def test_a_part_that_is_complete_is_not_fetched_again(serve, tmp_path):
    content = archive({TRAIN: b"{}", VAL: b"{}"})
    server = serve({"/a.zip": content})
    (tmp_path / f"{ZIP}.part").write_bytes(content)
    state = {"url": f"{server.url}/a.zip", "length": len(content), "validator": '"one"'}
    (tmp_path / f"{ZIP}.part.json").write_text(json.dumps(state))
    fetch(downloader(), server, tmp_path)
    assert server.requests == []


def test_a_range_that_the_server_does_not_have(serve, tmp_path):
    content = archive({TRAIN: b"{}", VAL: b"{}"})
    server = serve({"/a.zip": content}, {"/a.zip": [416, "ok"]})
    (tmp_path / f"{ZIP}.part").write_bytes(b"PK")
    state = {"url": f"{server.url}/a.zip", "length": 10, "validator": '"one"'}
    (tmp_path / f"{ZIP}.part.json").write_text(json.dumps(state))
    fetch(downloader(), server, tmp_path)
    assert ranges(server) == ["bytes=2-", None]


def test_an_interrupted_archive_is_kept(serve, tmp_path, large_archive, monkeypatch):
    server = serve({"/a.zip": large_archive}, tags={"/a.zip": '"one"'})
    tool = downloader()
    blocks = tool._blocks

    def interrupted(response, max_bytes):
        yield next(blocks(response, max_bytes))
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "_blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(tool, server, tmp_path)
    assert (tmp_path / f"{ZIP}.part").stat().st_size == coco_download.BLOCK
    fetch(downloader(), server, tmp_path)
    assert ranges(server) == [None, f"bytes={coco_download.BLOCK}-"]


def test_a_full_disk_keeps_the_part_of_the_archive(serve, tmp_path, large_archive, monkeypatch):
    resource = pytest.importorskip("resource")
    server = serve({"/a.zip": large_archive}, tags={"/a.zip": '"one"'})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match="what was fetched is kept"):
            fetch(downloader(), server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(server.requests) == 1  # it is no fault that passes
    size = (tmp_path / f"{ZIP}.part").stat().st_size
    assert 900_000 < size <= 1_000_000
    fetch(downloader(), server, tmp_path)
    assert ranges(server) == [None, f"bytes={size}-"]


def test_a_full_disk_while_unpacking_keeps_the_archive(serve, tmp_path, large_archive, monkeypatch):
    server = serve({"/a.zip": large_archive})
    with monkeypatch.context() as patch:
        patch.setattr(SegStudio, "write_atomically", full_disk)
        with pytest.raises(OSError, match="No space.*the archive is kept"):
            fetch(downloader(), server, tmp_path)
    assert names(tmp_path) == [ZIP]
    fetch(downloader(), server, tmp_path)
    assert len(server.requests) == 1


# ---- the command --------------------------------------------------------------------------------


def test_command_downloads_and_lists_failures(serve, tmp_path):
    data = small_set(tmp_path)
    content = (tmp_path / "images/1.jpg").read_bytes()
    server = serve({"/1": content, "/2": content}, {"/2": [404]})
    data["images"][0]["coco_url"] = f"{server.url}/1"
    data["images"].append({**data["images"][0], "id": 2, "coco_url": f"{server.url}/2"})
    data["images"].append({**data["images"][0], "id": 3, "coco_url": f"{server.url}/3"})
    data["images"].append({**data["images"][0], "id": 4, "coco_url": "file:///etc/hostname"})
    data["annotations"].append({**data["annotations"][0], "id": 8, "image_id": 2})
    data["annotations"].append({**data["annotations"][0], "id": 9, "image_id": 4})
    (tmp_path / "instances.json").write_text(json.dumps(data))
    code, problems, _ = run_small(tmp_path, "--download", "--image-size", 16)
    assert code == 1
    assert len(problems) == 3
    assert re.match("image 2 is left out: .*404", problems[0])
    assert re.match("image 4 is left out: .*http", problems[1])
    assert (tmp_path / "out/train/images/1_18.png").is_file()
    assert sorted(server.requests) == ["/1", "/2"]  # image 3 was not selected
    server.plans = {}
    assert run_small(tmp_path, "--download", "--image-size", 16)[0] == 1
    assert server.requests.count("/1") == 1
    assert (tmp_path / "out/train/images/2_18.png").is_file()
