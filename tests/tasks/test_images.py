"""Reading one image: every mode, range and orientation that files have becomes the same eight bits, or one line."""

import io

import numpy as np
import pytest
from PIL import Image

from metarun.errors import UserError
from metarun.tasks.vision.images import ENDINGS, is_clutter, is_image, open_image, read_image

RAMP = np.linspace(0, 255, 64).round().reshape(8, 8)
"""Grey values of an image, 0..255."""


def saved(tmp_path, image, name="image.tif", **more):
    image.save(tmp_path / name, **more)
    return tmp_path / name


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        (RAMP.astype(np.uint8), "L"),
        ((RAMP * 257).astype(np.uint16), "I;16"),
        (RAMP.astype(np.uint16), "I;16"),
        (RAMP.astype(np.int32), "I"),
        ((RAMP * 257).astype(np.int32), "I"),
        ((RAMP / 255).astype(np.float32), "F"),
        (RAMP.astype(np.float32), "F"),
        ((RAMP * 257).astype(np.float32), "F"),
    ],
)
def test_every_range_of_a_grey_tiff_is_the_same_image(tmp_path, values, mode):
    image = Image.fromarray(values)
    assert image.mode == mode
    read = np.asarray(open_image(saved(tmp_path, image)))
    assert read.dtype == np.uint8
    assert abs(read - RAMP).max() <= 0.5
    assert np.array_equal(read, np.asarray(open_image(values)))  # as an array


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (RAMP.astype(np.float32) - 20, "-20 to 235"),
        (RAMP.astype(np.int32) * 1000, "0 to 255000"),
        (np.full((8, 8), np.nan, np.float32), "not-a-number"),
        (np.where(RAMP > 9, np.inf, RAMP).astype(np.float32), "inf"),
    ],
)
def test_values_that_no_image_has_are_refused_in_one_line(tmp_path, values, words):
    file = saved(tmp_path, Image.fromarray(values))
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        open_image(file)
    assert str(file) in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("image", "name", "seen"),
    [
        (Image.new("1", (4, 4), 1), "i.png", (255, 255, 255)),
        (Image.new("LA", (4, 4), (7, 255)), "i.png", (7, 7, 7)),
        (Image.new("LA", (4, 4), (7, 0)), "i.png", (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (9, 8, 7, 255)), "i.png", (9, 8, 7)),
        (Image.new("RGBA", (4, 4), (9, 8, 7, 0)), "i.png", (255, 255, 255)),
        (Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4), "i.png", (10, 200, 30)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "i.tif", (255, 0, 0)),
    ],
)
def test_every_mode_is_its_colour(tmp_path, image, name, seen):
    read = read_image(saved(tmp_path, image, name), 4, "rgb")
    assert read[:, 1, 1].tolist() == list(seen)


def test_a_file_an_array_a_pillow_image_and_bytes_are_the_same(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    file = saved(tmp_path, image, "i.png")
    for source in (file, file.read_bytes(), image, pixels):
        assert np.array_equal(np.asarray(open_image(source)), pixels)
    opaque = np.dstack([pixels, np.full((9, 7), 255, np.uint8)])
    assert np.array_equal(np.asarray(open_image(opaque)), pixels)
    with pytest.raises(UserError, match=r"an array uint8\[3, 2, 5, 5\] is no image"):
        open_image(np.zeros((3, 2, 5, 5), np.uint8))


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_is_obeyed(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    rows = np.arange(64, dtype=np.uint8).reshape(8, 8)
    kept = np.asarray(open_image(saved(tmp_path, Image.fromarray(rows), "i.png", exif=exif)))
    assert sorted(kept.ravel()) == sorted(rows.ravel())
    assert (kept == rows).all() == (turn == 1)


def test_other_formats_are_refused_whatever_they_are_called(tmp_path):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    (tmp_path / "i.png").write_bytes(eps)
    with pytest.raises(UserError, match="of no known format"):
        open_image(tmp_path / "i.png")
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "png")
    (tmp_path / "i.jpg").write_bytes(buffer.getvalue())  # a PNG under another name
    assert open_image(tmp_path / "i.jpg").size == (4, 4)


def test_names():
    assert is_image("a/B.JPG")
    assert is_image("x.Tiff")
    assert not is_image("a.txt")
    assert ".png" in ENDINGS
    for path in ("__MACOSX/a/._1.png", "a/.DS_Store", "a/Thumbs.db", ".git/x.png"):
        assert is_clutter(path)
    assert not is_clutter("a/b.png")
