"""Own images: layouts, modes, the invalidation of the cache, and all that can be wrong with them."""

import os
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.errors import UserError
from metarun.tasks.vision import collection
from metarun.tasks.vision.folder import Folder
from metarun.tasks.vision.images import read_image

ARGUMENTS = {
    **{
        "way": 2,
        "shot": 1,
        "query": 1,
        "test_ways": [],
        "unknown": 0,
        "episodes": "balanced",
        "size": 8,
        "colour": "rgb",
    },
    **{"val": 0.25, "test": 0.25, "split_seed": 0, "augment": 0.0, "crop": 0, "flip": False, "jitter": 0.0},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An own cache each test."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def shade(name: str, number: int) -> int:
    return 20 * (ord(name[-1]) - ord("a")) + number


@pytest.fixture
def root(tmp_path):
    """Eight classes a..h of three images; a pixel tells class and number."""
    for name in "abcdefgh":
        write(tmp_path / "images" / name, name)
    return tmp_path / "images"


def write(at, name, count=3):
    at.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (8, 8), (shade(name, i), 0, 255)).save(at / f"{i}.png")


def build(root, **given):
    return Folder(0, root=str(root), **{**ARGUMENTS, **given})


def test_classes_are_folders_and_the_split_is_seeded(root):
    task = build(root)
    assert task.data.names == list("abcdefgh")
    assert task.data.sizes.tolist() == [3] * 8
    assert task.data.x.dtype == torch.uint8
    assert task.data.x[:, 0, 0, 0].tolist() == [shade(c, i) for c in "abcdefgh" for i in range(3)]
    assert {split: len(ids) for split, ids in task.classes.items()} == {"train": 4, "val": 2, "test": 2}
    assert sorted(np.concatenate(list(task.classes.values()))) == list(range(8))
    homes = {tuple(build(root, split_seed=seed).classes["test"]) for seed in range(5)}
    assert len(homes) > 1
    assert task.spec.input_shape == (3, 8, 8)
    assert build(root, colour="grey").spec.input_shape == (1, 8, 8)


def test_an_own_split_is_kept(tmp_path):
    for split, names in {"train": "abc", "val": "de", "test": "fg"}.items():
        for name in names:
            write(tmp_path / "own" / split / name, name)
    task = build(tmp_path / "own")
    assert {s: [task.data.names[c] for c in ids] for s, ids in task.classes.items()} == {
        "train": ["a", "b", "c"],
        "val": ["d", "e"],
        "test": ["f", "g"],
    }
    assert task.protocol()["split"] == "own"
    write(tmp_path / "own" / "test" / "a", "a")
    with pytest.raises(UserError, match=r"class 'a' is in both train/ and test/"):
        build(tmp_path / "own")


def test_decoded_once_and_again_when_files_change(root, monkeypatch):
    calls = []

    def counting(file, *arguments):
        calls.append(file)
        return read_image(file, *arguments)

    monkeypatch.setattr(collection, "read_image", counting)

    def decoded(root, **given) -> int:
        """Images that building the task decodes."""
        before = len(calls)
        assert build(root, **given).data.x.shape[0] == sum(1 for _ in root.rglob("*.png"))
        return len(calls) - before

    assert decoded(root) == 24
    assert decoded(root) == 0
    os.utime(root / "a" / "0.png", ns=(1, 1))  # touched
    assert decoded(root) == 0
    root = root.rename(root.parent / "moved")
    assert decoded(root) == 0
    assert len(list((root.parent / "cache" / "folder").glob("*.npy"))) == 1
    Image.new("RGB", (8, 8), (255, 255, 255)).save(root / "a" / "0.png")
    assert decoded(root) == 24
    assert build(root).data.x[0].min() == 255
    Image.new("RGB", (8, 8)).save(root / "a" / "9.png")
    assert decoded(root) == 25
    (root / "a" / "9.png").unlink()
    assert decoded(root) == 0  # as it was
    assert decoded(root, size=9) == 24
    assert decoded(root, colour="grey") == 24


def test_a_zip_is_read_as_its_folder_and_shares_its_decoded_images(root, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, f"photos/{file.relative_to(root)}")
            archive.writestr(f"__MACOSX/photos/{file.parent.name}/._{file.name}", "junk")
        archive.writestr("photos/.DS_Store", "junk")
    folder, packed = build(root), build(tmp_path / "images.zip")
    assert packed.data.names == folder.data.names
    assert packed.data.digests == folder.data.digests
    assert torch.equal(packed.data.x, folder.data.x)
    assert len(list((tmp_path / "cache" / "folder").glob("*.npy"))) == 1


def test_what_is_not_read_is_counted_and_named(root, caplog):
    (root / "a" / "inside").mkdir()
    Image.new("L", (8, 8)).save(root / "a" / "inside" / "x.png")
    for name in ("a/1.heic", "a/2.HEIC", "b/notes.txt", "readme"):
        (root / name).write_text("mine")
    Image.new("L", (8, 8)).save(root / "loose.png")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "x.png").write_text("junk")
    (root / "b" / "Thumbs.db").write_text("junk")
    (root / "c" / "UPPER.PNG").write_bytes((root / "c" / "0.png").read_bytes())
    with caplog.at_level("INFO", "metarun"):
        assert build(root).data.sizes.tolist() == [3, 3, 4, 3, 3, 3, 3, 3]
    told = caplog.text
    assert "read 25 images of 8 classes; skipped 6 files: 2 .heic (no decoder), 1 .txt" in told
    assert "1 in folders inside that of a class ('a/inside')" in told
    assert "1 outside of the classes' folders" in told
    assert "1 without an ending" in told


def own_split(at, **parts):
    for split, names in parts.items():
        for name in names:
            write(at / split / name, name)
    return at


def splits(task):
    return {split: "".join(task.data.names[c] for c in ids) for split, ids in task.classes.items()}


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Val"])
def test_names_of_the_validation_folder(tmp_path, name):
    task = build(own_split(tmp_path / "own", train="abc", test="fg", **{name: "de"}))
    assert splits(task) == {"train": "abc", "val": "de", "test": "fg"}


def test_without_a_validation_folder_some_of_trains_classes_are_taken(tmp_path):
    task = build(own_split(tmp_path / "own", train="abcdef", test="gh"), val=0.34)
    parts = splits(task)
    assert parts["test"] == "gh"
    assert len(parts["val"]) == 2
    assert sorted(parts["train"] + parts["val"]) == list("abcdef")


def test_a_split_of_images_is_ignored_with_a_line(tmp_path, caplog):
    with caplog.at_level("INFO", "metarun"):
        task = build(own_split(tmp_path / "own", train="abcdefgh", test="abcdefgh"))
    assert task.data.sizes.tolist() == [6] * 8
    assert {split: len(names) for split, names in splits(task).items()} == {"train": 4, "val": 2, "test": 2}
    assert "train/ and test/ hold the same 8 classes: that split of images is ignored" in caplog.text


def test_tiny_imagenets_layout(tmp_path, caplog):
    for name in "abcdefgh":
        write(tmp_path / "tiny" / "train" / name / "images", name)
        (tmp_path / "tiny" / "train" / name / f"{name}_boxes.txt").write_text("0 0 8 8")
    for part in ("val", "test"):
        write(tmp_path / "tiny" / part / "images", "z")
    with caplog.at_level("INFO", "metarun"):
        task = build(tmp_path / "tiny")
    assert task.data.names == list("abcdefgh")
    assert task.data.sizes.tolist() == [3] * 8
    assert "in val/images, which is no class" in caplog.text


def test_linked_classes_are_read(root, tmp_path):
    (tmp_path / "linked").mkdir()
    for name in "abcdefgh":
        (tmp_path / "linked" / name).symlink_to(root / name)
    assert torch.equal(build(tmp_path / "linked").data.x, build(root).data.x)
    (tmp_path / "linked" / "a" / "again").symlink_to(tmp_path / "linked")  # in a circle
    assert build(tmp_path / "linked").data.sizes.tolist() == [3] * 8
    (root / "a" / "gone.png").symlink_to(root / "none.png")
    with pytest.raises(UserError, match=r"gone.png: a link to [^\n]*, which is not there$"):
        build(root)


def test_folders_of_folders_are_refused_by_name(tmp_path):
    for name in "abcdef":
        write(tmp_path / "kinds" / "animals" / name, name)
        write(tmp_path / "kinds" / "plants" / name, name)
    with pytest.raises(UserError, match=r"'animals' holds folders of images .*, such as .*kinds/animals$"):
        build(tmp_path / "kinds")


def test_six_classes_are_enough(tmp_path):
    for name in "abcdef":
        write(tmp_path / "few" / name, name)
    assert {split: len(names) for split, names in splits(build(tmp_path / "few")).items()} == {
        "train": 2,
        "val": 2,
        "test": 2,
    }


def test_what_is_not_an_image_is_left_alone(root):
    (root / "notes.txt").write_text("mine")
    (root / "a" / "notes.txt").write_text("mine")
    (root / "a" / ".hidden.png").write_text("junk")
    (root / ".git").mkdir()
    assert build(root).data.sizes.tolist() == [3] * 8


@pytest.mark.parametrize("ending", ["png", "jpg", "JPEG", "bmp", "gif", "webp", "tif", "ppm"])
@pytest.mark.parametrize("colour", ["rgb", "grey"])
def test_formats(tmp_path, ending, colour):
    file = tmp_path / f"image.{ending}"
    Image.new("RGB", (40, 31), (200, 200, 200)).save(file)
    x = read_image(file, 16, colour)
    assert x.shape == (3 if colour == "rgb" else 1, 16, 16)
    assert x.dtype == np.uint8
    assert abs(x.astype(int) - 200).max() <= 2


@pytest.mark.parametrize(
    ("mode", "value", "seen"),
    [
        ("1", 1, 255),
        ("L", 100, 100),
        ("LA", (0, 0), 255),
        ("RGBA", (0, 0, 0, 0), 255),
        ("RGBA", (90, 90, 90, 255), 90),
        ("P", 0, 0),
        ("CMYK", (0, 0, 0, 0), 255),
        ("I;16", 65535, 255),
        ("I;16", 257 * 50, 50),
        ("F", 0.5, 128),
    ],
)
def test_modes(tmp_path, mode, value, seen):
    file = tmp_path / ("image.tif" if mode in ("CMYK", "F") else "image.png")
    Image.new(mode, (8, 8), value).save(file)
    assert np.unique(read_image(file, 8, "grey")).tolist() == [seen]


def test_the_middle_is_cropped_and_exif_is_obeyed(tmp_path):
    image = np.zeros((10, 30), np.uint8)
    image[:, 10:20] = 255
    Image.fromarray(image).save(tmp_path / "wide.png")
    assert read_image(tmp_path / "wide.png", 10, "grey").min() == 255
    half = np.zeros((16, 16), np.uint8)
    half[:8] = 255  # light above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(half).save(tmp_path / "turned.jpg", exif=exif)
    turned = read_image(tmp_path / "turned.jpg", 16, "grey")[0]
    assert turned[:6].mean() < 5
    assert turned[10:].mean() > 250


def test_channels_are_red_green_blue(tmp_path):
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "i.png")
    assert read_image(tmp_path / "i.png", 4, "rgb")[:, 0, 0].tolist() == [1, 2, 3]


def spoil_nothing(root):
    pass


def truncate(root):
    file = root / "c" / "1.png"
    file.write_bytes(file.read_bytes()[:40])


def junk(root):
    (root / "c" / "1.png").write_text("no image")


def empty_class(root):
    (root / "z").mkdir()


def few_images(root):
    (root / "c" / "1.png").unlink()
    (root / "c" / "2.png").unlink()


def no_val(root):
    (root / "train").mkdir()


@pytest.mark.parametrize(
    ("spoil", "given", "words"),
    [
        (spoil_nothing, {"root": None}, "task.root is not set"),
        (spoil_nothing, {"root": "no/such"}, "task.root=no/such: no such folder"),
        (spoil_nothing, {"root": __file__}, "not a folder"),
        (spoil_nothing, {"way": 3}, "task.way=3"),
        (spoil_nothing, {"val": 0.0}, "classes leave 0 for 'val'"),
        (spoil_nothing, {"val": 0.5, "test": 0.6}, "task.val=0.5"),
        (spoil_nothing, {"shot": 3}, "shot=3 + query=1 is more than the 3 examples of class"),
        (spoil_nothing, {"test_ways": [3]}, "way=3 is more than the 2 classes of the 'test' split"),
        (truncate, {}, os.path.join("c", "1.png")),
        (junk, {}, os.path.join("c", "1.png")),
        (empty_class, {}, "z: no images in this class's folder"),
        (few_images, {}, "the 1 examples of class 'c'"),
        (no_val, {}, "train: no images in this class's folder"),
    ],
)
def test_what_is_wrong_is_one_line(root, spoil, given, words):
    spoil(root)
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        torch.sum(Folder(0, **{"root": str(root), **ARGUMENTS, **given}).data.x)
    assert words in str(error.value)


def test_a_missing_test_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"beside train/ there must be test/"):
        build(own_split(tmp_path / "own", train="abc", val="de"))


def test_a_single_class_and_none(tmp_path):
    write(tmp_path / "one" / "a", "a")
    with pytest.raises(UserError, match="1 classes leave"):
        build(tmp_path / "one")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no folders"):
        build(tmp_path / "none")
