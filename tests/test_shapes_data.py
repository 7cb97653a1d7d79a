"""PurdueShapes5MultiObject: reading, refusing, caching and drawing archives."""

import errno
import gzip
import io
import multiprocessing
import os
import pickle
import runpy
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from SegStudio import SegStudio

ShapesDataset = SegStudio.SemanticSegmentation.PurdueShapes5MultiObjectDataset
LABELS = {"rectangle": 50, "triangle": 100, "disk": 150, "oval": 200, "star": 250}
NAME = "PurdueShapes5MultiObject-6-train.gz"
REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user_cache"))
    return tmp_path / "user_cache"


def make_items(count=6, seed=0):
    """Items with lists of ints, overlapping planes and one to five boxes of a shape."""
    rng = np.random.default_rng(seed)
    items = []
    for index in range(count):
        channels = [rng.integers(0, 256, 4096).tolist() for _ in range(3)]
        mask = (rng.random((5, 64, 64)) < 0.2) * np.arange(50, 251, 50)[:, None, None]
        boxes = {k: rng.integers(0, 64, (max(0, index - k), 4)).tolist() for k in range(5)}
        items.append([*channels, mask.astype("u1"), boxes])
    return items


def pack(content, path, protocol=3):
    data = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
    path.write_bytes(gzip.compress(data, 1))
    return path


def load(archive, **kwargs):
    settings = SimpleNamespace(dataroot=str(archive.parent), image_size=[64, 64])
    segmenter = SimpleNamespace(max_num_objects=5)
    return ShapesDataset(settings, segmenter, "train", archive.name, **kwargs)


def oracle(item):
    """What DLStudio makes of an item, pixel by pixel and box by box."""
    image = torch.zeros(3, 64, 64)
    for c in range(3):
        image[c] = torch.from_numpy(np.array(item[c]).reshape(64, 64))
    boxes = torch.zeros(5, 5, 4)
    for key in item[4]:
        for i, box in enumerate(item[4][key]):
            kind = (key - 50) // 50 if key >= 50 else key
            for corner in range(4):
                boxes[i, kind, corner] = box[corner]
    mask = torch.from_numpy(np.array(item[3]))
    return {"image": image, "mask_tensor": mask, "bbox_tensor": boxes}


def check(dataset, items):
    assert len(dataset) == len(items)
    for index, item in enumerate(items):
        expected, sample = oracle(item), dataset[index]
        assert list(sample) == list(expected)
        for key in expected:
            assert sample[key].dtype == expected[key].dtype
            assert torch.equal(sample[key], expected[key]), (index, key)


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# ---- reading ----


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("container", ["dict", "list"])
def test_items_equal_the_oracle(tmp_path, protocol, container):
    items = make_items(3 if protocol < 2 else 6)
    dataset = dict(enumerate(items)) if container == "dict" else items
    archive = pack([dataset, LABELS], tmp_path / NAME, protocol)
    check(load(archive), items)


def test_arrays_rows_and_keys_of_mask_values(tmp_path):
    items = make_items()
    changed = []
    for index, (r, g, b, mask, boxes) in enumerate(items):
        red = [np.uint8(value) for value in r] if index == 0 else np.array(r, "u1")
        green = np.array(g).reshape(64, 64)
        blue = np.array(b).reshape(64, 64).tolist()
        mask = np.asfortranarray(mask) if index % 2 else mask.astype(">i2").tolist()
        boxes = {50 * (k + 1): np.array(boxes[k]) if boxes[k] else [] for k in (4, 1, 0, 2)}
        changed.append((red, green.astype(">f8"), blue, mask, boxes))
    for item in items:
        del item[4][3]  # the changed boxes lack it too
    for protocol in (2, 4, 5):
        check(load(pack([changed, LABELS], tmp_path / NAME, protocol)), items)


def python2_pickle(items):
    """The bytes that Python 2 wrote to protocol 2: strings for bytes, __builtin__, numpy.core."""

    def text(value):
        return b"T" + len(value).to_bytes(4, "little") + value

    out = [b"\x80\x02](](" + b""]
    for r, g, b, mask, boxes in items:
        out.append(b"](")
        for channel in (r, g, b):
            out.append(b"](" + b"".join(b"K" + bytes([value]) for value in channel) + b"e")
        out += [
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85",
            text(b"b") + b"\x87R(K\x01(K\x05K@K@tcnumpy\ndtype\n" + text(b"u1"),
            b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff",
            b"K\x00tb\x89" + text(mask.tobytes()) + b"tb",
        ]
        out.append(pickle.dumps(boxes, 2)[2:-1] + b"e")
    labels = [text(name.encode()) + b"K" + bytes([value]) for name, value in LABELS.items()]
    return b"".join([*out, b"e}(", *labels, b"ue."])


def test_python_2_archive(tmp_path):
    items = make_items()
    data = python2_pickle(items)
    theirs, labels = pickle.loads(data, encoding="latin1")  # what the test wrote is a pickle
    assert labels == LABELS
    assert np.array_equal(theirs[1][3], items[1][3])
    check(load(pack(data, tmp_path / NAME)), items)


class AnyNumpy(pickle.Unpickler):
    """Reads what numpy 2 pickled with numpy 1 as well, where a module has another name."""

    def find_class(self, module, name):
        try:
            return super().find_class(module, name)
        except ModuleNotFoundError:
            return super().find_class(module.replace("numpy._core", "numpy.core"), name)


def unpickle(gzipped):
    return AnyNumpy(io.BytesIO(gzip.decompress(gzipped))).load()


def test_the_shipped_archives_load():
    for kind in ("train", "test"):
        source = REPO / "Datasets" / f"PurdueShapes5MultiObject-20-{kind}.gz"
        records = unpickle(source.read_bytes())[0]
        assert len(records) == 20
    assert (
        records[0][0]
        != unpickle((source.parent / "PurdueShapes5MultiObject-20-train.gz").read_bytes())[0][0][0]
    )


@pytest.mark.parametrize("ending", ["", "/", "path"])
def test_dataroot_with_or_without_slash_or_home(tmp_path, monkeypatch, ending):
    monkeypatch.setenv("HOME", str(tmp_path))
    pack([make_items(), LABELS], tmp_path / NAME)
    for root in (str(tmp_path), "~"):
        root = Path(root) if ending == "path" else root + ending
        settings = SimpleNamespace(dataroot=root, image_size=(64, 64))
        dataset = ShapesDataset(
            train_or_test="test", dl_studio=settings, segmenter=None, dataset_file=NAME
        )
        assert len(dataset) == 6


def test_dataroot_may_be_the_start_of_the_files_name_as_in_dlstudio(tmp_path):
    pack([make_items(), LABELS], tmp_path / NAME)
    settings = SimpleNamespace(dataroot=f"{tmp_path}/Purdue", image_size=[64, 64])
    dataset = ShapesDataset(settings, None, "train", NAME.removeprefix("Purdue"))
    assert len(dataset) == 6


def test_attributes_are_those_of_dlstudio(tmp_path):
    items = make_items()
    dataset = load(pack([items, LABELS], tmp_path / NAME))
    assert dataset.label_map == LABELS
    assert dataset.class_labels == {value: name for name, value in LABELS.items()}
    assert dataset.num_shapes == 5
    assert dataset.image_size == [64, 64]
    assert dataset.mask_values == (50, 100, 150, 200, 250)
    assert dataset.class_names == tuple(LABELS)
    assert not dataset.generated
    for (_, ours), theirs in zip(dataset.dataset.items(), items, strict=True):
        assert ours[:3] == theirs[:3]
        assert np.array_equal(ours[3], theirs[3])
        assert ours[4] == theirs[4]


def test_num_images_keeps_the_first(tmp_path):
    items = make_items()
    archive = pack([items, LABELS], tmp_path / NAME)
    check(load(archive, num_images=2), items[:2])
    with pytest.raises(IndexError):
        load(archive, num_images=2)[2]
    for wrong, why in ((0, "1 or more"), (-1, "1 or more"), (7, "has 6")):
        with pytest.raises(ValueError, match=f"num_images is {wrong}.* {why}"):
            load(archive, num_images=wrong)


def test_a_subclass_may_override_items(tmp_path):
    class Doubled(ShapesDataset):
        def __getitem__(self, idx):
            item = super().__getitem__(idx)
            item["image"] = 2 * item["image"] + float(self.dataset[idx][3].max() > 255)
            return item

    archive = pack([make_items(), LABELS], tmp_path / NAME)
    settings = SimpleNamespace(dataroot=tmp_path, image_size=[64, 64])
    batch = next(iter(DataLoader(Doubled(settings, None, "train", NAME), batch_size=6)))
    plain = next(iter(DataLoader(load(archive), batch_size=6)))
    assert torch.equal(batch["image"], 2 * plain["image"])


@pytest.mark.parametrize("container", ["dict", "list"])
def test_items_of_the_students_own_may_be_assigned(tmp_path, container):
    """DLStudio's scripts shorten, reorder and replace self.dataset."""
    dataset = load(pack([make_items(), LABELS], tmp_path / NAME))
    items = make_items(4, seed=9)
    dataset.dataset = dict(enumerate(items)) if container == "dict" else items
    check(dataset, items)
    check(pickle.loads(pickle.dumps(dataset)), items)  # as a DataLoader worker gets it
    with pytest.raises(IndexError):
        dataset[4]


def test_items_can_be_filtered_as_a_dict(tmp_path):
    items = make_items()
    dataset = load(pack([items, LABELS], tmp_path / NAME))
    assert list(dataset.dataset) == list(dataset.dataset.keys()) == list(range(6))
    assert len(dataset.dataset) == 6
    kept = [item for number, item in dataset.dataset.items() if number % 2]
    dataset.dataset = dict(enumerate(kept))
    check(dataset, items[1::2])


def test_assigned_items_are_checked_when_they_are_read(tmp_path):
    dataset = load(pack([make_items(), LABELS], tmp_path / NAME))
    items = make_items(3)
    items[2][3] = items[2][3][:4]
    dataset.dataset = items
    assert dataset[1]["mask_tensor"].shape == (5, 64, 64)
    with pytest.raises(ValueError, match="item 2 .*4 planes instead of 5"):
        dataset[2]


@pytest.mark.slow
def test_workers_map_the_file_anew(tmp_path):
    dataset = load(pack([make_items(), LABELS], tmp_path / NAME), num_images=5)
    assert len(pickle.dumps(dataset)) < 2000
    expected = [dataset[i]["image"] for i in range(5)]
    methods = [m for m in ("fork", "spawn") if m in multiprocessing.get_all_start_methods()]
    for method in methods:
        loader = DataLoader(dataset, num_workers=1, multiprocessing_context=method)
        for image, item in zip(expected, loader, strict=True):
            assert torch.equal(item["image"][0], image)


# ---- refusing ----


class Caller:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "named"),
    [
        (os.system, f"{os.name}.system"),
        (eval, "eval"),
        (getattr, "getattr"),
        (np.fromfile, "fromfile"),
        (subprocess.run, "(subprocess|commands).run"),  # Python 2's name for it
        (np.load, "numpy.load"),
    ],
)
def test_a_pickle_that_calls_is_refused_by_name(tmp_path, protocol, function, named):
    witness = tmp_path / "witness"
    call = Caller(function, f"open({str(witness)!r}, 'w')")
    if function is os.system:
        call = Caller(function, f"touch {witness}")
    items = make_items()
    items[1][4] = call
    archive = pack([items, LABELS], tmp_path / NAME, protocol)
    with pytest.raises(ValueError, match=named) as error:
        load(archive)
    assert str(archive) in str(error.value)
    assert files(tmp_path) == [NAME]


def test_dotted_names_and_object_arrays_are_refused(tmp_path):
    archive = tmp_path / NAME
    pack(b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", archive)
    with pytest.raises(ValueError, match="ndarray.tofile"):
        load(archive)
    items = make_items()
    for array in (np.array([1, "a", None] * 1365 + [0], object), np.zeros(4096, "M8[s]")):
        items[2][0] = array
        with pytest.raises(ValueError, match="refused: it has an array of .*not a type of numbers"):
            load(pack([items, LABELS], archive))
    assert files(tmp_path) == [NAME]


OBJECT = Caller(np.dtype, "O", False, True)
PAIR = None, ("a",), {"a": (OBJECT, 0)}, 8, 1, 0  # the state of a type with one object field
FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]


class Forged(Caller):
    """A call, and the state that the object made by it takes afterwards."""

    def __init__(self, function, *args, state):
        self.call = function, args, state


@pytest.mark.parametrize(
    "forged",
    [
        Caller(np.ndarray, (4096,), OBJECT, b"pointers" * 4096),
        Caller(np.ndarray, (4096,), "O", b"pointers" * 4096),
        *(
            Caller(FROM_BUFFER, b"pointers" * 4096, number_type, (4096,), "C")
            for number_type in (
                OBJECT,
                Forged(np.dtype, "V8", False, True, state=(3, "|", *PAIR)),
                Forged(np.dtype, "u8", False, True, state=(3, "|", *PAIR)),
                Forged(np.dtype, "u8", state=(3, "|", (OBJECT, (1,)), None, None, 8, 1, 0)),
            )
        ),
    ],
)
def test_bytes_never_become_objects(tmp_path, forged):
    """numpy would follow the "pointers" of these archives: they crash it, or worse."""
    items = make_items(3)
    items[1][0] = forged
    archive = pack([items, LABELS], tmp_path / NAME, 4)
    with pytest.raises(ValueError, match="not a type of numbers|channel R|not callable"):
        load(archive)
    assert files(tmp_path) == [NAME]


def test_a_huge_declared_array_costs_nothing(tmp_path):
    item = make_items(1)[0]
    data = pickle.dumps([[item], LABELS], 3)
    shape = b"K\x05K@K@\x87"
    assert data.count(shape) == 1
    huge = b"(" + b"J\xff\xff\xff\x7f" * 3 + b"t"
    with pytest.raises(ValueError, match="is not a complete gzip of a pickle"):
        load(pack(data.replace(shape, huge), tmp_path / NAME))
    assert files(tmp_path) == [NAME]


def test_a_gzip_bomb_is_refused(tmp_path):
    megabyte = gzip.compress(b"N0" * (1 << 19))
    (tmp_path / NAME).write_bytes(gzip.compress(b"\x80\x03") + 200 * megabyte)
    with pytest.raises(ValueError, match="unpacks to more than"):
        load(tmp_path / NAME)


def edit(path, value):
    def change(items):
        target = items[1]
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit([0], [0] * 4095), "item 1: channel R"),
        (edit([1, 7], 256), "item 1: channel G"),
        (edit([1, 7], -1), "item 1: channel G"),
        (edit([2, 7], 0.5), "item 1: channel B"),
        (edit([2], "text"), "item 1: channel B"),
        (edit([2], 4096), "item 1: channel B"),
        (edit([2], []), "item 1: channel B"),
        (edit([2], np.full(4096, 300)), "item 1: channel B"),
        (edit([2], np.full(4096, -1)), "item 1: channel B"),
        (edit([2], np.full(4096, np.nan)), "item 1: channel B"),
        (edit([3], np.zeros((4, 64, 64), "u1")), "item 1: .*4 planes instead of 5"),
        (edit([3], np.zeros((5, 32, 64), "u1")), "item 1: mask plane 0"),
        (edit([3], None), "item 1: "),
        (edit([3, 2, 5, 5], 100), "item 1: mask plane 2 has values other than 0 and 150"),
        (edit([4, 1], [[1, 2, 3]]), "item 1: bbox_map.1. .*4 numbers"),
        (edit([4, 1], [[1, 2, 3, 4.5]]), "item 1: bbox_map.1. has a corner"),
        (edit([4, 1], [[1, 2, 3, "x"]]), "item 1: "),
        (edit([4, 1], [[1, 2, 3, 10**6]]), "item 1: "),
        (edit([4, 1], [[1, 2, 3, 4]] * 6), "item 1: bbox_map.1. .*up to 5"),
        (edit([4, 60], [[1, 2, 3, 4]]), "item 1: .*keys other than"),
        (edit([4], []), "item 1: "),
        (lambda items: items.__setitem__(1, items[1][:4]), "item 1: .*R, G, B"),
        (lambda items: items.__setitem__(1, None), "item 1: .*R, G, B"),
        (lambda items: items.clear(), "no images"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_wrong_items_are_named(tmp_path, change, message):
    items = make_items(3)
    change(items)
    archive = pack([items, LABELS], tmp_path / NAME)
    with pytest.raises(ValueError, match=message) as error:
        load(archive)
    assert str(archive) in str(error.value)
    assert "\n" not in str(error.value)
    assert files(tmp_path) == [NAME]


@pytest.mark.parametrize("damage", ["truncated", "bit", "no gzip", "no pickle", "half", "empty"])
def test_damaged_archives(tmp_path, damage):
    archive = pack([make_items(), LABELS], tmp_path / NAME)
    data = archive.read_bytes()
    middle = len(data) // 2
    if damage in ("no pickle", "half"):
        pack(b"hello" if damage == "no pickle" else gzip.decompress(data)[:-90], archive)
    else:
        archive.write_bytes(
            {
                "truncated": data[:-4],
                "bit": data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :],
                "no gzip": b"hello",
                "empty": b"",
            }[damage]
        )
    with pytest.raises(ValueError, match="is not a complete gzip of a pickle") as error:
        load(archive)
    assert str(archive) in str(error.value)
    assert files(tmp_path) == [NAME]


def test_other_contents_are_refused(tmp_path):
    items = make_items(2)
    with pytest.raises(ValueError, match="label_map is not .*rectangle"):
        load(pack([items, {"rectangle": 1}], tmp_path / NAME))
    with pytest.raises(ValueError, match="TypeError"):
        load(pack(5, tmp_path / NAME))
    with pytest.raises(ValueError, match="numbered 0, 1, 2"):
        load(pack([{0: items[0], 2: items[1]}, LABELS], tmp_path / NAME))


def test_missing_archive_tells_both_ways(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load(tmp_path / NAME)
    for part in (str(tmp_path / NAME), "purdue.edu", "make_purdue_shapes.py --out", ".generate"):
        assert part in str(error.value)


def test_wrong_arguments(tmp_path):
    archive = pack([make_items(), LABELS], tmp_path / NAME)
    settings = SimpleNamespace(dataroot=tmp_path, image_size=[32, 32])
    with pytest.raises(ValueError, match=r"\[32, 32\].*\[64, 64\]"):
        ShapesDataset(settings, None, "train", NAME)
    assert files(tmp_path) == [archive.name]


# ---- the cache ----


def test_later_loads_use_the_cache_and_say_nothing(tmp_path, capsys, monkeypatch):
    archive = pack([make_items(), LABELS], tmp_path / NAME)
    load(archive)
    first = capsys.readouterr().out
    assert str(archive) in first
    assert first.count("\n") == 1
    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(gzip, "open", None)
    check(load(archive), make_items())
    assert capsys.readouterr().out == ""


def test_a_changed_archive_is_never_stale(tmp_path):
    archive = pack([make_items(seed=1), LABELS], tmp_path / NAME)
    stat = archive.stat()
    load(archive)
    pack([make_items(seed=2), LABELS], archive)
    os.utime(archive, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other = tmp_path / f"{NAME}x.v1-0.cache.npy"
    other.write_bytes(b"another archive's")
    check(load(archive), make_items(seed=2))
    caches = [name for name in files(tmp_path) if name.endswith(".cache.npy")]
    assert len(caches) == 2  # the old one has gone, the other archive's has not
    assert other.name in caches


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "text", "dtype"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    archive = pack([make_items(), LABELS], tmp_path / NAME)
    load(archive)
    (cache,) = tmp_path.glob("*.cache.npy")
    data = cache.read_bytes()
    if damage == "dtype":
        np.save(cache, np.zeros(6))
    else:
        new = {"cut": data[:-1], "longer": data + b"x", "empty": b"", "text": b"hello" * 99}
        cache.unlink()
        cache.write_bytes(new[damage])
    check(load(archive), make_items())
    assert cache.read_bytes() == data


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    archive = pack([make_items(seed=1), LABELS], tmp_path / NAME)
    load(archive)
    before = files(tmp_path)
    pack([make_items(seed=2), LABELS], archive)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="cache of .*No space left.*MB") as error:
            load(archive)
        assert str(archive) in str(error.value)
    with monkeypatch.context() as patch:
        patch.setattr(gzip, "GzipFile", full)
        with pytest.raises(OSError, match="the disk is full"):
            ShapesDataset.generate(archive, 3)
    assert files(tmp_path) == before
    check(load(archive), make_items(seed=2))


def test_a_read_only_folder_uses_the_users_cache(tmp_path, user_cache, monkeypatch):
    folder = tmp_path / "shared"
    folder.mkdir()
    archive = pack([make_items(), LABELS], folder / NAME)
    path_open = Path.open

    def deny(self, mode="r", *args, **kwargs):
        if "b" in mode and self.parent in denied:
            raise OSError(errno.EROFS, "Read-only file system")
        return path_open(self, mode, *args, **kwargs)

    denied = [folder]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", deny)
        # read_bytes goes by open as well, and reading is allowed
        patch.setattr(Path, "read_bytes", lambda self: gzip.io.open(self, "rb").read())
        dataset = load(archive)
        check(dataset, make_items())
        assert files(folder) == [NAME]
        (cache,) = user_cache.rglob("*.cache.npy")
        patch.setattr(pickle, "Unpickler", None)
        patch.setattr(gzip, "open", None)
        check(load(archive), make_items())
    shutil.rmtree(user_cache)
    monkeypatch.setattr(Path, "read_bytes", lambda self: gzip.io.open(self, "rb").read())
    monkeypatch.setattr(Path, "open", deny)
    denied.append(cache.parent)
    with pytest.raises(OSError, match="XDG_CACHE_HOME"):
        load(archive)


def load_and_report(archive, queue):
    queue.put(load(archive)[5]["image"].sum().item())


def test_two_processes_at_once(tmp_path):
    archive = pack([make_items(), LABELS], tmp_path / NAME)
    context = multiprocessing.get_context()
    queue = context.Queue()
    processes = [context.Process(target=load_and_report, args=(archive, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    sums = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    assert sums == {float(sum(sum(channel) for channel in make_items()[5][:3]))}
    assert len(files(tmp_path)) == 2


# ---- drawing ----


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    path = tmp_path_factory.mktemp("drawn") / "PurdueShapes5MultiObject-1000-train.gz"
    ShapesDataset.generate(path, 1000, seed=3)
    return pickle.loads(gzip.decompress(path.read_bytes()), encoding="latin1")


def test_the_drawn_archive_has_the_originals_format(drawn):
    dataset, labels = drawn
    assert labels == LABELS
    assert type(dataset) is dict
    assert list(dataset) == list(range(1000))
    for index in (0, 49, 50, 999):
        item = dataset[index]
        assert [type(part) for part in item] == [np.ndarray] * 4 + [dict]
        assert all(c.shape == (4096,) and c.dtype == np.uint8 for c in item[:3])
        assert item[3].shape == (5, 64, 64)
        assert item[3].dtype == np.uint8
        assert list(item[4]) == list(range(5))


def test_the_drawn_statistics_are_the_originals(drawn):
    items = list(drawn[0].values())
    squares = np.mean([(item[3].astype(float) ** 2).mean() for item in items])
    assert 450 < squares < 485  # of 10,000 images: 460 to 475
    counts = [sum(len(boxes) for boxes in item[4].values()) for item in items]
    assert set(np.bincount(counts)) == {0, 200}  # 1 to 5 shapes, each as often
    kinds = np.sum([[len(item[4][k]) for k in range(5)] for item in items], 0)
    assert kinds.tolist() == [600] * 5
    boxes = np.array([box for item in items for group in item[4].values() for box in group])
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    assert sides.min() == 6
    assert 28 <= sides.max() <= 32
    assert boxes.min() >= 0
    assert boxes.max() <= 63


def test_drawn_masks_are_what_can_be_seen(drawn):
    for index in range(400):
        item = drawn[0][index]
        image, mask = np.array(item[:3]).reshape(3, 64, 64), item[3]
        seen = mask > 0
        assert seen.sum(0).max() == 1  # a pixel shows one shape
        assert np.array_equal(seen.any(0), image.any(0))  # and the rest is black
        assert image.max(0)[seen.any(0)].min() >= 128
        total = sum(len(boxes) for boxes in item[4].values())
        assert len(np.unique(image.reshape(3, -1), axis=1).T) - 1 == total  # one color each
        for kind, boxes in item[4].items():
            assert set(np.unique(mask[kind])) <= {0, 50 * (kind + 1)}
            assert boxes or not mask[kind].any()


def test_drawn_boxes_are_tight(drawn):
    """Oracle: the extent of each color in the plane of its kind."""
    for index in range(300):
        item = drawn[0][index]
        image = np.array(item[:3]).reshape(3, 64, 64).transpose(1, 2, 0)
        for kind, boxes in item[4].items():
            expected = []
            for color in np.unique(image[item[3][kind] > 0], axis=0):
                rows, cols = np.nonzero((image == color).all(2))
                expected.append([cols.min(), rows.min(), cols.max(), rows.max()])
            assert sorted(boxes) == sorted(expected)


def test_drawing_is_reproducible(tmp_path, monkeypatch):
    first = ShapesDataset.generate(tmp_path / "a.gz", 120, seed=5).read_bytes()
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert ShapesDataset.generate(str(tmp_path / "new" / "b.gz"), 120, seed=5).read_bytes() == first
    assert ShapesDataset.generate(tmp_path / "a.gz", 120, seed=6).read_bytes() != first
    items, _ = pickle.loads(gzip.decompress(first))
    ShapesDataset.generate(tmp_path / "c.gz", 7, seed=5)
    fewer, _ = pickle.loads(gzip.decompress((tmp_path / "c.gz").read_bytes()))
    assert all(np.array_equal(fewer[i][:3], items[i][:3]) for i in range(7))
    assert files(tmp_path) == ["a.gz", "b.gz", "c.gz"]


def test_drawing_needs_memory_for_an_image_and_not_for_the_set(tmp_path):
    ShapesDataset.generate(tmp_path / "first.gz", 1)  # imports and caches
    tracemalloc.start()
    try:
        ShapesDataset.generate(tmp_path / NAME, 60)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60 * 8 * 64 * 64 / 2  # half of the bytes of the images and masks


def test_drawn_archives_load_as_written(tmp_path):
    archive = ShapesDataset.generate(tmp_path / NAME, 60, seed=1)
    dataset = load(archive)
    assert dataset.generated
    check(dataset, list(pickle.loads(gzip.decompress(archive.read_bytes()))[0].values()))


@pytest.mark.parametrize(("num_images", "seed"), [(0, 0), (-5, 0), (1.5, 0), (5, -1)])
def test_generate_refuses(tmp_path, num_images, seed):
    with pytest.raises(ValueError, match="num_images is|seed is"):
        ShapesDataset.generate(tmp_path / "a.gz", num_images, seed)
    assert files(tmp_path) == []


def test_an_interrupted_drawing_leaves_the_old_file(tmp_path, monkeypatch):
    archive = ShapesDataset.generate(tmp_path / NAME, 10)
    before = archive.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(np.random, "default_rng", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ShapesDataset.generate(archive, 200, seed=9)
    assert archive.read_bytes() == before
    assert files(tmp_path) == [NAME]


def test_find_or_generate(tmp_path, capsys):
    root = tmp_path / "data"
    train = ShapesDataset.find_or_generate(str(root) + "/", "PurdueShapes5MultiObject-20-train.gz")
    said = capsys.readouterr().out
    assert "20 images" in said
    assert "generated" in said
    assert said.count("\n") == 1
    test = ShapesDataset.find_or_generate(root, "PurdueShapes5MultiObject-20-test.gz")
    sets = [load(train), load(test)]
    images = {bytes(item["image"].numpy()) for dataset in sets for item in dataset}
    assert len(images) == 40  # no test image is a training image
    stamp = train.stat().st_mtime_ns
    capsys.readouterr()
    assert ShapesDataset.find_or_generate(root, train.name) == train
    assert train.stat().st_mtime_ns == stamp
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="how many images"):
        ShapesDataset.find_or_generate(root, "shapes.gz")


def test_the_script(tmp_path, monkeypatch, capsys):
    script = REPO / "Datasets" / "make_purdue_shapes.py"

    def run(*args):
        monkeypatch.setattr(sys, "argv", [str(script), *args])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    for kind, seed in (("train", 0), ("test", 1)):
        name = f"PurdueShapes5MultiObject-20-{kind}.gz"
        assert f"20 images (seed {seed})" in run("--out", name)
        packed = [(folder / name).read_bytes() for folder in (script.parent, tmp_path)]
        theirs, ours = (unpickle(data)[0] for data in packed)
        assert all(np.array_equal(theirs[i][:3], ours[i][:3]) for i in range(20))
    with pytest.raises(SystemExit, match="^make_purdue_shapes.py: num_images is 0.*or more$"):
        run("--out", "a.gz", "--num-images", "0")
    with pytest.raises(SystemExit, match="^make_purdue_shapes.py: say --num-images"):
        run("--out", "a.gz")
    assert len(files(tmp_path)) == 2


# ---- DLStudio itself ----


def test_dlstudio_itself_reads_the_same(tmp_path, monkeypatch):
    pytest.importorskip("pymsgbox")
    dlstudio = pytest.importorskip("DLStudio").DLStudio
    monkeypatch.chdir(tmp_path)
    ShapesDataset.generate(tmp_path / NAME, 40, seed=2)
    settings = SimpleNamespace(dataroot=f"{tmp_path}/", image_size=[64, 64])
    segmenter = SimpleNamespace(max_num_objects=5)
    theirs = dlstudio.SemanticSegmentation.PurdueShapes5MultiObjectDataset(
        settings, segmenter, "train", NAME
    )
    ours = ShapesDataset(settings, segmenter, "train", NAME)
    assert ours.class_labels == theirs.class_labels
    for index in range(40):
        a, b = ours[index], theirs[index]
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["mask_tensor"], b["mask_tensor"])
        assert torch.equal(a["bbox_tensor"], b["bbox_tensor"][:5])
        assert a["bbox_tensor"].dtype == b["bbox_tensor"].dtype


def test_time_is_not_in_the_bytes(tmp_path, monkeypatch):
    first = ShapesDataset.generate(tmp_path / "a.gz", 3).read_bytes()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert ShapesDataset.generate(tmp_path / "a.gz", 3).read_bytes() == first
