"""CocoSingleObjectDataset: items agree with the prepared files; its cache is sound and found."""

import builtins
import io
import json
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_sets import CLASSES, draw, prepare
from PIL import Image
from torch.utils.data import DataLoader

from SegStudio import SegStudio

Dataset = SegStudio.SemanticSegmentation.CocoSingleObjectDataset


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """A small synthetic set: (folder of images, annotation file)."""
    return draw(tmp_path_factory.mktemp("synthetic"), number=12)


@pytest.fixture
def prepared(synthetic, tmp_path):
    """The folder of a prepared split, 64x64, two images of each class."""
    return prepare(*synthetic, tmp_path, limit=2)[1].parent


def load(folder, *, size=64, split="train", **options):
    """The dataset of a folder, by its absolute path, with settings that need no more."""
    settings = types.SimpleNamespace(dataroot="/nowhere", image_size=[size, size])
    return Dataset(settings, None, split, str(folder), **options)


def cache_files(folder):
    """What the dataset wrote beside what prepare_coco wrote."""
    own = {folder / "manifest.json", folder / "images", folder / "masks"}
    return sorted(set(folder.iterdir()) - own) if folder.is_dir() else []


# ---- items --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_value", [255, 1])
def test_items_agree_with_the_files(prepared, mask_value):
    settings = types.SimpleNamespace(dataroot=str(prepared.parent), image_size=[64, 64])
    data = Dataset(settings, None, "train", "train", mask_value=mask_value)
    samples = json.loads((prepared / "manifest.json").read_text())["samples"]
    assert len(data) == len(samples) == 6
    assert tuple(data.class_names) == CLASSES
    assert data.class_labels == {0: "cake", 1: "dog", 2: "motorcycle"}
    assert tuple(data.mask_values) == (mask_value,)
    for item, sample in zip((data[k] for k in range(len(data))), samples, strict=True):
        image = np.asarray(Image.open(prepared / sample["image"]))
        mask = np.asarray(Image.open(prepared / sample["mask"]))
        assert item["image"].dtype == torch.float32
        assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), image)
        assert item["mask_tensor"].dtype == torch.uint8
        assert np.array_equal(item["mask_tensor"][0].numpy(), mask // 255 * mask_value)
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), columns.max(), rows.max()]
        assert item["bbox_tensor"].shape == (1, 1, 4)
        assert item["bbox_tensor"].dtype == torch.float32
        assert item["bbox_tensor"][0, 0].tolist() == box
        assert CLASSES[item["category"]] == sample["category"]


def test_num_images_and_index(prepared):
    data = load(prepared, num_images=3)
    assert len(data) == 3
    assert torch.equal(data[-1]["image"], data[2]["image"])
    with pytest.raises(IndexError):
        data[3]
    assert len(load(prepared)) == 6  # the cache holds all of them


def test_generated_tells_a_synthetic_set(prepared):
    assert load(prepared).generated is True
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["description"] = "COCO 2017 Dataset"
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    assert load(prepared).generated is False


@pytest.mark.slow
def test_workers_of_a_loader(prepared):
    data = load(prepared, num_images=4)
    content = pickle.dumps(data)  # what a spawned worker gets: no copy of the images
    assert len(content) < 50_000
    loader = DataLoader(pickle.loads(content), 2, num_workers=2, multiprocessing_context="fork")
    batches = list(loader)
    together = torch.cat([batch["image"] for batch in batches])
    assert torch.equal(together, torch.stack([data[k]["image"] for k in range(4)]))
    assert batches[0]["bbox_tensor"].shape == (2, 1, 1, 4)


# ---- the cache ----------------------------------------------------------------------------------


def test_the_cache_is_written_once(prepared):
    load(prepared)
    [cache] = cache_files(prepared)
    written = cache.stat().st_mtime_ns
    load(prepared)
    assert cache_files(prepared) == [cache]
    assert cache.stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["cut off", "empty", "text"])
def test_a_damaged_cache_is_made_again(prepared, damage):
    first = load(prepared)[0]
    [cache] = cache_files(prepared)
    sound = cache.read_bytes()
    contents = {"cut off": sound[:-5000], "empty": b"", "text": b"no cache"}
    cache.unlink()  # the first dataset may still have it open
    cache.write_bytes(contents[damage])
    assert torch.equal(load(prepared)[0]["image"], first["image"])
    assert cache_files(prepared) == [cache]
    assert cache.read_bytes() == sound


def test_a_stale_cache_is_not_used(synthetic, prepared):
    first = load(prepared)
    [stale] = cache_files(prepared)
    prepare(*synthetic, prepared.parent, limit=1)
    (prepared / stale.name).write_bytes(b"of an older set")
    second = load(prepared)
    assert (len(first), len(second)) == (6, 3)
    assert stale not in cache_files(prepared)
    assert len(cache_files(prepared)) == 1


def refuse_writing(folder, monkeypatch):
    """As if the folder were read-only. (chmod does not stop root, who may run the tests.)"""
    for module in (builtins, io):  # pathlib uses io.open

        def guarded(file, mode="r", *arguments, opened=module.open, **options):
            writing = set(mode) & set("wax+") and isinstance(file, (str, Path))
            if writing and Path(file).is_relative_to(folder):
                raise PermissionError(13, "Permission denied", str(file))
            return opened(file, mode, *arguments, **options)

        monkeypatch.setattr(module, "open", guarded)
    # Python 3.10's pathlib keeps the io.open of its import.
    monkeypatch.setattr(Path, "open", lambda path, *given, **more: open(path, *given, **more))  # noqa: PTH123, SIM115


def test_a_read_only_folder_uses_the_users_cache(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refuse_writing(prepared, monkeypatch)
    assert len(load(prepared)) == 6
    assert cache_files(prepared) == []
    [cache] = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert "segstudio" in str(cache.relative_to(tmp_path)).lower()
    written = cache.stat().st_mtime_ns
    assert len(load(prepared)) == 6
    assert cache.stat().st_mtime_ns == written


def without_home(monkeypatch):
    """As in a container whose user has neither a home folder nor an entry in passwd."""
    import pwd

    def unknown(uid):
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.skipif(sys.platform == "win32", reason="its users always have a home folder")
def test_without_a_home_folder_the_cache_is_beside_the_data(prepared, monkeypatch):
    without_home(monkeypatch)
    assert len(load(prepared)) == 6
    assert len(cache_files(prepared)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="its users always have a home folder")
def test_without_a_home_folder_no_folder_of_that_name_is_made(prepared, tmp_path, monkeypatch):
    """The home folder of nobody is "~", and that is a name like any other for mkdir."""
    without_home(monkeypatch)
    refuse_writing(prepared, monkeypatch)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OSError, match="set XDG_CACHE_HOME to a folder with room"):
        load(prepared)
    assert list((tmp_path / "here").iterdir()) == []


def test_a_full_disk_leaves_no_torn_cache(prepared, tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the cache has some 100,000 bytes
    try:
        with pytest.raises(OSError):
            load(prepared)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert cache_files(prepared) == []
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(load(prepared)) == 6


# ---- errors -------------------------------------------------------------------------------------


def test_errors_say_what_to_do(prepared):
    with pytest.raises(FileNotFoundError, match=r"prepare_coco\.py"):
        load(prepared.parent / "elsewhere")
    with pytest.raises(ValueError, match=r"\[64, 64\].*\[32, 32\]"):
        load(prepared, size=32)
    with pytest.raises(ValueError, match="train images, not test"):
        load(prepared, split="test")
    for options in ({"mask_value": 0}, {"mask_value": 256}, {"num_images": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            load(prepared, **options)


@pytest.mark.parametrize("field", ["image", "mask_sha256", "category"])
@pytest.mark.parametrize("value", [None, 5, [], "delete"])
def test_a_manifest_with_a_damaged_sample_is_named(prepared, field, value):
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["samples"][1][field] = value
    if value == "delete":
        del manifest["samples"][1][field]
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json is not a manifest|not the file that was"):
        load(prepared)


@pytest.mark.parametrize(
    ("where", "value"),
    [("description", 5), ("classes", True), ("classes", "dog"), ("image_size", [64])],
)
def test_a_manifest_with_a_damaged_field_is_named(prepared, where, value):
    manifest = json.loads((prepared / "manifest.json").read_text())
    (manifest if where in manifest else manifest["options"])[where] = value
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json is not a manifest"):
        load(prepared)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "samples": []}'])
def test_a_damaged_manifest_is_named(prepared, content):
    (prepared / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match="not a manifest"):
        load(prepared)


def test_a_changed_or_missing_file_is_named(prepared):
    picture = next((prepared / "masks").iterdir())
    Image.new("L", (64, 64)).save(picture)
    with pytest.raises(ValueError, match="not the file that was prepared"):
        load(prepared)
    picture.unlink()
    with pytest.raises(FileNotFoundError, match="missing"):
        load(prepared)
