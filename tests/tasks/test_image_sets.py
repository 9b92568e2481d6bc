"""Published image sets, small ones made up in the layouts of the public files."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.errors import UserError
from metarun.tasks.vision import images, mini_imagenet
from metarun.tasks.vision.cifar import FC100, CifarFS
from metarun.tasks.vision.cub import CUB
from metarun.tasks.vision.mini_imagenet import MiniImageNet
from metarun.tasks.vision.published import class_list
from metarun.tasks.vision.tiered_imagenet import TieredImageNet
from metarun.types import SPLITS

EPISODE = {"way": 2, "shot": 1, "query": 1, "test_ways": [], "unknown": 0, "episodes": "balanced"}
PLAIN = {"whole": False, "crop": 0, "flip": False, "jitter": 0.0}


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """An own cache, and no data but those that a test names."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("METARUN_DATA", str(tmp_path / "data"))


COUNTS = {
    "mini_imagenet": (64, 16, 20),
    "cifar_fs": (64, 16, 20),
    "fc100": (60, 20, 20),
    "tiered_imagenet": (351, 97, 160),
    "cub": (100, 50, 50),
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_splits(name):
    listed = class_list(name)
    assert tuple(sum(home == split for home, _ in listed.values()) for split in SPLITS) == COUNTS[name]
    lines = (Path(mini_imagenet.__file__).parent / "splits" / f"{name}.txt").read_text().splitlines()
    assert len(lines) == 1 + len(listed)  # no class twice
    if name in ("fc100", "tiered_imagenet"):
        homes = {group: home for home, group in listed.values()}
        assert all(homes[group] == home for home, group in listed.values())
        assert len(homes) == {"fc100": 20, "tiered_imagenet": 34}[name]


def test_cifars_two_splits_are_of_the_same_hundred_classes():
    one, other = class_list("cifar_fs"), class_list("fc100")
    assert {c: group for c, (_, group) in one.items()} == {c: group for c, (_, group) in other.items()}
    assert len(one) == 100


# Class c of the split's list is all of one shade, image i of it a little lighter.
WNIDS = {split: [c for c, (home, _) in class_list("mini_imagenet").items() if home == split][:3] for split in SPLITS}
SHADES = {wnid: 20 * k for k, wnid in enumerate(c for split in SPLITS for c in WNIDS[split])}
EACH = 4


def shade(wnid: str, i: int) -> np.ndarray:
    """[84, 84, 3], red tells class and number, green is 0, blue 255."""
    pixels = np.zeros((84, 84, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = SHADES[wnid] + i, 255
    return pixels


def encoded(pixels: np.ndarray, kind: str = "png") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def named(wnid: str, i: int) -> str:
    return f"{wnid}{i + 1:08}.jpg"


def every():
    return [(split, wnid, i) for split in SPLITS for wnid in WNIDS[split] for i in range(EACH)]


def write_folder(root):
    (root / "images").mkdir(parents=True)
    for _, wnid, i in every():
        (root / "images" / named(wnid, i)).write_bytes(encoded(shade(wnid, i)))  # PNG inside: exact


def write_classes(root):
    for split, wnid, i in every():
        file = root / split / wnid / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(shade(wnid, i)))


def contents(split):
    """Ren et al.'s dictionary of one split."""
    return {
        "image_data": np.stack([shade(w, i) for w in WNIDS[split] for i in range(EACH)]),
        "class_dict": {w: list(range(k * EACH, (k + 1) * EACH)) for k, w in enumerate(WNIDS[split])},
    }


def write_pickles(root, val="validation"):
    root.mkdir(parents=True)
    for split in SPLITS:
        name = f"mini-imagenet-cache-{val if split == 'val' else split}.pkl"
        (root / name).write_bytes(pickle.dumps(contents(split), 2))


def write_lees_pickles(root):
    root.mkdir(parents=True)
    for split in SPLITS:
        labels = np.repeat(np.arange(3), EACH).tolist()
        content = {"data": contents(split)["image_data"], "labels": labels,
                   "catname2label": {w: k for k, w in enumerate(WNIDS[split])}}  # fmt: skip
        phase = "train_phase_train" if split == "train" else split
        (root / f"miniImageNet_category_split_{phase}.pickle").write_bytes(pickle.dumps(content, 2))


def write_tar_of_pickles(root):
    root.mkdir(parents=True)
    with tarfile.open(root / "mini-imagenet.tar.gz", "w:gz") as tar:
        for split in SPLITS:
            add(tar, f"mini-imagenet-cache-{split}.pkl", pickle.dumps(contents(split), 2))


def write_tar_of_images(root):
    root.mkdir(parents=True)
    with tarfile.open(root / "mini.tar", "w") as tar:
        for _, wnid, i in reversed(every()):
            add(tar, f"images/{named(wnid, i)}", encoded(shade(wnid, i)))
        add(tar, "images/._" + named("n01532829", 9), b"junk of a file system")
        add(tar, "train.csv", b"filename,label\n")


def write_zip_of_images(root):
    root.mkdir(parents=True)
    with zipfile.ZipFile(root / "mini.zip", "w") as archive:
        for _, wnid, i in every():
            archive.writestr(f"mini/images/{named(wnid, i)}", encoded(shade(wnid, i)))


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_parquet(root, names=True):
    """As the hub has it: two files of the training split, labels numbered through all splits, wnids in the schema."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'metarun[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    (root / "data").mkdir(parents=True)
    label = {"names": list(SHADES), "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
    features = {"image": {"_type": "Image"}, "label": label}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for split in SPLITS:
        rows = [(w, i) for w in WNIDS[split] for i in range(EACH)]
        parts = [rows[:5], rows[5:]] if split == "train" else [rows]
        for k, part in enumerate(parts):
            table = pa.table({
                "image": [{"bytes": encoded(shade(w, i)), "path": named(w, i)} for w, i in part],
                "label": [list(SHADES).index(w) for w, _ in part],
            }).replace_schema_metadata(metadata)  # fmt: skip
            name = "validation" if split == "val" else split
            parquet.write_table(table, root / "data" / f"{name}-{k:05}-of-{len(parts):05}-0f0f.parquet")


LAYOUTS = {
    f.__name__: f
    for f in (
        *(write_folder, write_classes, write_pickles, write_lees_pickles),
        *(write_tar_of_pickles, write_tar_of_images, write_zip_of_images, write_parquet),
    )
}


def mini(root, **given):
    return MiniImageNet(0, root=None if root is None else str(root),
                        **{**EPISODE, "size": 84, "resize": "squash", **PLAIN, **given})  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_mini_imagenet_gives_the_same(tmp_path, layout):
    LAYOUTS[layout](tmp_path / "own")
    task = mini(tmp_path / "own")
    assert {s: [task.data.names[c] for c in ids] for s, ids in task.classes.items()} == WNIDS
    assert task.data.x.shape == (36, 3, 84, 84)
    assert task.data.x.dtype == torch.uint8
    assert task.data.x[:, 2].min() == 255
    assert task.data.x[:, 1].max() == 0
    for c, wnid in enumerate(task.data.names):
        rows = task.data.x[task.data.offsets[c] : task.data.offsets[c + 1], 0]
        assert rows.amax((1, 2)).tolist() == rows.amin((1, 2)).tolist()
        assert sorted(rows[:, 0, 0].tolist()) == [SHADES[wnid] + i for i in range(EACH)]
    batch = task.batch("train", [0, 1])
    assert batch.support.x.shape == (2, 2, 3, 84, 84)
    assert task.protocol()["whole"] is False


def test_labels_without_names_keep_the_files_splits(tmp_path):
    write_parquet(tmp_path / "own", names=False)
    task = mini(tmp_path / "own")
    assert {s: [task.data.names[c] for c in ids] for s, ids in task.classes.items()} == {
        "train": ["train/0", "train/1", "train/2"],
        "val": ["val/3", "val/4", "val/5"],
        "test": ["test/6", "test/7", "test/8"],
    }


def test_found_where_data_lie_and_one_file_is_enough(tmp_path):
    write_tar_of_images(tmp_path / "data" / "mini-imagenet")
    assert len(mini(None).data.x) == 36
    assert len(mini(tmp_path / "data").data.x) == 36
    assert len(mini(tmp_path / "data" / "mini-imagenet" / "mini.tar").data.x) == 36
    assert len(list((tmp_path / "cache" / "mini_imagenet").glob("*.npy"))) == 1  # known by its content


def test_decoded_once_and_again_when_a_file_changes_or_the_cache_is_damaged(tmp_path, monkeypatch):
    write_folder(tmp_path / "own")
    calls = []
    decode = images.decode

    def counted(sources, one, into, label):
        calls.extend([1] * label.startswith("decoding"))
        return decode(sources, one, into, label)

    monkeypatch.setattr("metarun.tasks.vision.collection.decode", counted)
    made = mini(tmp_path / "own")
    first = made.data.x.clone()
    made.data.x[:] = 0
    assert torch.equal(mini(tmp_path / "own").data.x, first)
    assert len(calls) == 1
    mini(tmp_path / "own").data.x[:] = 0  # a copy in memory: the cache stays as it is
    assert torch.equal(mini(tmp_path / "own").data.x, first)
    (stored,) = (tmp_path / "cache" / "mini_imagenet").glob("*.npy")
    content = bytearray(stored.read_bytes())
    content[-1000] ^= 1  # one bit
    stored.write_bytes(content)
    assert torch.equal(mini(tmp_path / "own").data.x, first)
    assert len(calls) == 2
    stored.write_bytes(content[:-1])
    assert torch.equal(mini(tmp_path / "own").data.x, first)
    assert len(calls) == 3
    file = tmp_path / "own" / "images" / named(WNIDS["train"][0], 0)
    file.write_bytes(encoded(np.full((84, 84, 3), 9, np.uint8)))
    assert (mini(tmp_path / "own").data.x == 9).all(3).all(2).all(1).sum() == 1
    assert mini(tmp_path / "own", size=20).data.x.shape[-1] == 20
    assert len(calls) == 5


def test_sizes_and_shapes(tmp_path):
    write_folder(tmp_path / "own")
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    for _, wnid, i in every():
        (tmp_path / "own" / "images" / named(wnid, i)).write_bytes(encoded(wide))
    assert mini(tmp_path / "own", size=10, resize="crop").data.x.min() == 255
    squashed = mini(tmp_path / "own", size=30, resize="squash").data.x.float().mean()
    assert abs(squashed - 85) < 3


def test_images_that_cannot_be_read_are_counted_and_named(tmp_path):
    write_folder(tmp_path / "own")
    for i, wnid in enumerate([w for s in SPLITS for w in WNIDS[s]][:7]):
        file = tmp_path / "own" / "images" / named(wnid, 2)
        file.write_bytes([b"no image", file.read_bytes()[:60], b""][i % 3])
    with pytest.raises(UserError, match=r"^7 of 36 images cannot be read: [^\n]*; and 2 more$") as error:
        mini(tmp_path / "own").data.x.sum()
    assert named(WNIDS["train"][0], 2) in str(error.value)
    assert not list((tmp_path / "cache" / "mini_imagenet").iterdir())  # nothing half done


def test_missing_images_and_classes_are_counted_and_named(tmp_path, monkeypatch):
    write_folder(tmp_path / "own")
    with pytest.raises(UserError, match=r"has 3 classes of 'train', not 64; missing: n[^\n]*, \.\.\.; fetch it again"):
        mini(tmp_path / "own", whole=True)
    listed = {c: (s, "") for s in SPLITS for c in WNIDS[s]}
    monkeypatch.setattr("metarun.tasks.vision.published.class_list", lambda name: listed)
    monkeypatch.setattr(MiniImageNet, "num_images_per_class", EACH)
    assert len(mini(tmp_path / "own", whole=True).data.x) == 36
    gone = [named(WNIDS["train"][0], 0), named(WNIDS["train"][0], 1), named(WNIDS["test"][0], 3)]
    table = "filename,label\n" + "".join(f"{named(w, i)},{w}\n" for _, w, i in every())
    for name in gone:
        (tmp_path / "own" / "images" / name).unlink()
    words = f"3 images are missing, in 2 classes: '{gone[0][:9]}' has 2 of 4, '{gone[2][:9]}' has 3 of 4"
    with pytest.raises(UserError, match=words):
        mini(tmp_path / "own", whole=True)
    assert len(mini(tmp_path / "own").data.x) == 33
    (tmp_path / "own" / "train.csv").write_text(table)
    with pytest.raises(UserError, match=rf"^3 of the 36 images listed in .* are missing: {', '.join(gone)}$"):
        mini(tmp_path / "own")


def swap_splits(root):
    write_classes(root)
    (root / "train" / WNIDS["train"][0]).rename(root / "test" / WNIDS["train"][0])


def other_classes(root):
    write_classes(root)
    (root / "test" / WNIDS["test"][0]).rename(root / "n00000001")


def hostile(root):
    write_pickles(root)
    (root / "mini-imagenet-cache-test.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")


def other_pickle(root):
    write_pickles(root)
    (root / "mini-imagenet-cache-test.pkl").write_bytes(pickle.dumps({"image_data": np.zeros(3)}))


def beyond(root):
    write_pickles(root)
    content = {**contents("test"), "class_dict": {WNIDS["test"][0]: [99]}}
    (root / "mini-imagenet-cache-test.pkl").write_bytes(pickle.dumps(content))


def cut_tar(root):
    write_tar_of_pickles(root)
    file = root / "mini-imagenet.tar.gz"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(root):
    root.mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (swap_splits, "lies in 'test', but is one of 'train' in the published split"),
        (other_classes, "1 classes are in no split of this data set, such as 'n00000001'"),
        (hostile, "asks for more than data: os.system"),
        (other_pickle, "neither image_data and class_dict nor"),
        (beyond, "its classes refer to images beyond its 12"),
        (cut_tar, "not a readable archive"),
        (empty, "holds no mini-ImageNet; it must hold mini-imagenet-cache-"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, spoil, words):
    spoil(tmp_path / "own")
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        mini(tmp_path / "own")
    assert words in str(error.value)
    assert not Path("ran").exists()


def test_without_data_it_says_what_is_needed(tmp_path):
    with pytest.raises(UserError, match=r"^mini-ImageNet is not found: put [^\n]* with task.root$"):
        mini(None)
    with pytest.raises(UserError, match=r"^task.root=no/such: no such file or folder"):
        mini("no/such")


def write_tiered(root, prefix="tiered-imagenet-"):
    """Ren et al.'s pickles, as Python 3 and OpenCV wrote them: a list of arrays [n, 1] of a PNG's bytes."""
    root.mkdir(parents=True)
    for split in SPLITS:
        order = [1, 0, 2] * EACH
        pngs = [encoded(shade(WNIDS[split][k], i // 3)) for i, k in enumerate(order)]
        arrays = [np.frombuffer(png, np.uint8)[:, None] for png in pngs]
        labels = {"label_specific": np.array(order), "label_general": np.array(order) // 2,
                  "label_specific_str": [f"bird {k}" for k in range(3)], "label_general_str": ["a", "b"]}  # fmt: skip
        (root / f"{prefix}{split}_images_png.pkl").write_bytes(pickle.dumps(arrays, 2))
        (root / f"{prefix}{split}_labels.pkl").write_bytes(pickle.dumps(labels, 2))


def tiered(root, **given):
    return TieredImageNet(0, root=str(root), **{**EPISODE, "size": 84, "resize": "squash", **PLAIN, **given})


@pytest.mark.parametrize("prefix", ["tiered-imagenet-", ""])
def test_tiered_imagenets_pickles(tmp_path, prefix):
    write_tiered(tmp_path / "own", prefix)
    task = tiered(tmp_path / "own")
    assert {s: [task.data.names[c] for c in ids] for s, ids in task.classes.items()} == {
        s: [f"{s}/{k:03} bird {k}" for k in range(3)] for s in SPLITS
    }
    order = [w for s in SPLITS for w in WNIDS[s]]
    names = [f"{s}/{k:03} bird {k}" for s in SPLITS for k in range(3)]
    for c, name in enumerate(task.data.names):
        rows = task.data.x[task.data.offsets[c] : task.data.offsets[c + 1]]
        wnid = order[names.index(name)]
        assert rows[:, 0, 0, 0].tolist() == [SHADES[wnid] + i for i in range(EACH)]
        assert rows[:, 2].min() == 255
    with pytest.raises(UserError, match="has 3 classes of 'train', not 351; fetch it again"):
        tiered(tmp_path / "own", whole=True)


def test_tiered_imagenet_in_folders_and_its_errors(tmp_path):
    kept = {s: [c for c, (home, _) in class_list("tiered_imagenet").items() if home == s][:2] for s in SPLITS}
    for split in SPLITS:
        for wnid in kept[split]:
            for i in range(2):
                file = tmp_path / "own" / split / wnid / f"{wnid}_{i}.JPEG"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encoded(np.zeros((50, 80, 3), np.uint8), "jpeg"))
    task = tiered(tmp_path / "own")
    assert {s: [task.data.names[c] for c in ids] for s, ids in task.classes.items()} == kept
    write_tiered(tmp_path / "pickles")
    (tmp_path / "pickles" / "tiered-imagenet-val_labels.pkl").unlink()
    with pytest.raises(UserError, match=r"val_labels.pkl: no such file"):
        tiered(tmp_path / "pickles")
    write_tiered(tmp_path / "short")
    content = pickle.loads((tmp_path / "short" / "tiered-imagenet-val_images_png.pkl").read_bytes())
    (tmp_path / "short" / "tiered-imagenet-val_images_png.pkl").write_bytes(pickle.dumps(content[:-1]))
    with pytest.raises(UserError, match=r"holds 11 images, but tiered-imagenet-val_labels.pkl 12 labels"):
        tiered(tmp_path / "short").data.x.sum()
    content[5] = content[5][:50]
    (tmp_path / "short" / "tiered-imagenet-val_images_png.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"val_images_png.pkl: image 5: not a readable image"):
        tiered(tmp_path / "short").data.x.sum()


SPECIES = {s: [c for c, (home, _) in class_list("cub").items() if home == s][:3] for s in SPLITS}


def birds():
    """(path, content) of every file, as in CUB_200_2011.tgz."""
    names = [f"{c}/{c[4:]}_{i:04}_{i}.jpg" for s in SPLITS for c in SPECIES[s] for i in range(3)]
    yield "CUB_200_2011/images.txt", "".join(f"{i} {name}\n" for i, name in enumerate(names, 1)).encode()
    for k, name in enumerate(names):
        yield f"CUB_200_2011/images/{name}", encoded(np.full((40, 60, 3), 5 * k, np.uint8), "png")
    yield "CUB_200_2011/parts/picture.png", encoded(np.zeros((4, 4, 3), np.uint8))


def write_cub(root, pack):
    if pack:
        root.mkdir()
        with tarfile.open(root / "CUB_200_2011.tgz", "w:gz") as tar:
            for name, content in birds():
                add(tar, name, content)
    else:
        for name, content in birds():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)


def cub(root, **given):
    return CUB(0, root=str(root), **{**EPISODE, "size": 20, "resize": "crop", **PLAIN, **given})


@pytest.mark.parametrize("pack", [False, True])
def test_birds(tmp_path, pack, monkeypatch):
    write_cub(tmp_path / "own", pack)
    task = cub(tmp_path / "own")
    assert {s: [task.data.names[c] for c in ids] for s, ids in task.classes.items()} == SPECIES
    assert sorted(task.data.x[:, 0, 0, 0].tolist()) == [5 * k for k in range(27)]
    with pytest.raises(UserError, match="has 3 classes of 'train', not 100; missing: 0"):
        cub(tmp_path / "own", whole=True)
    listed = {c: (s, "") for s in SPLITS for c in SPECIES[s]}
    monkeypatch.setattr("metarun.tasks.vision.published.class_list", lambda name: listed)
    with pytest.raises(UserError, match="has 27 images, not 11788; fetch it again"):
        cub(tmp_path / "own", whole=True)


def test_missing_birds_are_named(tmp_path):
    write_cub(tmp_path / "own", False)
    gone = f"{SPECIES['val'][1]}/{SPECIES['val'][1][4:]}_0001_1.jpg"
    (tmp_path / "own" / "CUB_200_2011" / "images" / gone).unlink()
    with pytest.raises(UserError, match=f"^1 of the 27 images listed in .*images.txt are missing: {gone}$"):
        cub(tmp_path / "own", whole=True)
    assert len(cub(tmp_path / "own").data.x) == 26


# CIFAR-100: three of its classes for each split, in both published splits.
FINE = sorted(class_list("cifar_fs"))
KEPT = {"cifar_fs": CifarFS, "fc100": FC100}


def small_cifar():
    """The three dictionaries of cifar-100-python, with 3 training images and 1 test image a class."""
    rng = np.random.default_rng(0)

    def part(each):
        labels = np.repeat(np.arange(100), each)
        rng.shuffle(labels)
        data = np.zeros((len(labels), 3, 32, 32), np.uint8)
        data[:, 0], data[:, 2, 0, 31] = labels[:, None, None], 255  # a blue dot at the top right
        data[:, 1] = 10 * np.arange(len(labels))[:, None, None] % 250
        rest = {"coarse_labels": [0] * len(labels), "filenames": ["x.png"] * len(labels), "batch_label": "b"}
        return {"data": data.reshape(-1, 3072), "fine_labels": labels.tolist(), **rest}

    return {"train": part(3), "test": part(1), "meta": {"fine_label_names": FINE, "coarse_label_names": ["c"] * 20}}


def write_cifar(root):
    (root / "cifar-100-python").mkdir(parents=True)
    for name, content in small_cifar().items():
        (root / "cifar-100-python" / name).write_bytes(pickle.dumps(content, 2))


def write_cifar_tar(root):
    root.mkdir(parents=True)
    with tarfile.open(root / "cifar-100-python.tar.gz", "w:gz") as tar:
        for name, content in small_cifar().items():
            add(tar, f"cifar-100-python/{name}", pickle.dumps(content, 2))


def write_cifar_folders(root, split=None):
    for part in ("train", "test"):
        content = small_cifar()[part]
        for i, (row, label) in enumerate(zip(content["data"], content["fine_labels"], strict=True)):
            above = "data" if split is None else class_list(split)[FINE[label]][0]
            file = root / above / FINE[label] / f"{FINE[label][:2]}_s_{part}{i:06}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(row.reshape(3, 32, 32).transpose(1, 2, 0)))


def cifar(name, root, **given):
    return KEPT[name](0, root=str(root), **{**EPISODE, "size": 32, "resize": "squash", **PLAIN, **given})


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("layout", ["pickles", "tar", "folders", "folders by split"])
def test_every_layout_of_cifar_gives_the_same(tmp_path, name, layout):
    {"pickles": write_cifar, "tar": write_cifar_tar, "folders": write_cifar_folders,
     "folders by split": lambda root: write_cifar_folders(root, name)}[layout](tmp_path / "own")  # fmt: skip
    task = cifar(name, tmp_path / "own")
    assert tuple(len(task.classes[s]) for s in SPLITS) == COUNTS[name]
    assert task.data.sizes.tolist() == [4] * 100
    for c, label in enumerate(task.data.names):
        rows = task.data.x[task.data.offsets[c] : task.data.offsets[c + 1]]
        assert (rows[:, 0] == FINE.index(label)).all()
        assert (rows[:, 2, 0, 31] == 255).all()
        assert rows[:, 2].sum() == 4 * 255
    for split in SPLITS:
        assert {class_list(name)[task.data.names[c]][0] for c in task.classes[split]} == {split}


@pytest.mark.parametrize("name", ["cifar_fs", "fc100"])
def test_cifars_own_split_of_images_is_ignored_with_a_line(tmp_path, name, caplog):
    """train/<class> and test/<class> are of the same classes; the published list says which are held out."""
    write_cifar_folders(tmp_path / "plain")
    files = sorted((tmp_path / "plain").rglob("*.png"))
    for i, file in enumerate(files):
        place = tmp_path / "parts" / ("test" if i % 2 else "train") / file.parent.name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    with caplog.at_level("INFO", "metarun"):
        task = cifar(name, tmp_path / "parts")
    assert sum(task.data.sizes) == len(files)
    assert "lie in test/ and train/: this split of images is ignored" in caplog.text
    assert task.record().classes == cifar(name, tmp_path / "plain").record().classes


def test_cifars_two_splits_share_one_copy_of_the_images(tmp_path):
    write_cifar_folders(tmp_path / "plain")
    assert torch.equal(cifar("cifar_fs", tmp_path / "plain").data.x, cifar("fc100", tmp_path / "plain").data.x)
    assert len(list((tmp_path / "cache").glob("*/*.npy"))) == 1


def test_ravis_names_in_the_splits_folders_and_linked_classes(tmp_path):
    write_folder(tmp_path / "plain")
    for split, wnid, i in every():
        place = tmp_path / "parts" / split / named(wnid, i)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((tmp_path / "plain" / "images" / named(wnid, i)).read_bytes())
    write_classes(tmp_path / "classes")
    (tmp_path / "linked").mkdir()
    for folder in (tmp_path / "classes").iterdir():
        (tmp_path / "linked" / folder.name).symlink_to(folder)
    plain = mini(tmp_path / "plain")
    for other in ("parts", "linked"):
        assert torch.equal(mini(tmp_path / other).data.x, plain.data.x), other


def test_cifar_must_be_whole_unless_told(tmp_path):
    write_cifar(tmp_path / "own")
    words = r"59600 images are missing, in 100 classes: 'apple' has 4 of 600.* and 95 more; fetch it again, or"
    with pytest.raises(UserError, match=words):
        cifar("cifar_fs", tmp_path / "own", whole=True)


@pytest.mark.parametrize("spoiled", [{"fine_labels": [100] * 300}, {"data": [1, 2]}, {"fine_labels": [0]}])
def test_a_cifar_that_is_none(tmp_path, spoiled):
    write_cifar(tmp_path / "own")
    content = {**small_cifar()["train"], **spoiled}
    (tmp_path / "own" / "cifar-100-python" / "train").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"not CIFAR-100 as published"):
        cifar("cifar_fs", tmp_path / "own")
