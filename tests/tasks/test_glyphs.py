"""Letters: what the classes are, that no letter's relative crosses a split, that the rendering is sound."""

import copy
import re
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch

from metarun.config.build import construct
from metarun.errors import UserError
from metarun.models.conv4 import Conv4
from metarun.tasks.vision import glyphs
from metarun.tasks.vision.base import warped
from metarun.tasks.vision.glyphs import Glyphs, components, distances, inked, relatives, render
from tests.composed import composed

ARGUMENTS = {
    **{"way": 5, "shot": 1, "query": 5, "test_ways": [20], "unknown": 0, "episodes": "balanced", "size": 28},
    **{"val": 0.1, "test": 0.2, "split_seed": 0, "augment": 0.2},
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """One cache for the module: the letters are rendered once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield patch


@pytest.fixture(scope="module")
def task(cache):
    return Glyphs(0, **ARGUMENTS)


def split_of(task: Glyphs) -> dict[str, str]:
    return {task.data.names[c]: split for split, ids in task.classes.items() for c in ids}


def test_classes_and_splits(task):
    names = task.data.names
    assert len(set(names)) == len(names)
    assert 750 < len(names) < 914  # base letters in 8 styles, those that look the same merged
    assert all(unicodedata.category(n).startswith("L") and not unicodedata.decomposition(n) for n in names)
    assert task.data.sizes.min() >= 8
    assert task.data.x.dtype == torch.uint8
    assert task.data.x.shape[1:] == (1, 28, 28)
    sizes = {split: len(ids) for split, ids in task.classes.items()}
    assert sizes["test"] == round(0.2 * len(names))
    assert sizes["val"] == round(0.1 * len(names))
    assert sorted(np.concatenate(list(task.classes.values()))) == list(range(len(names)))


@pytest.mark.parametrize("split_seed", [0, 1, 2])
def test_relatives_and_lookalikes_stay_in_one_split(split_seed):
    home = split_of(Glyphs(0, **{**ARGUMENTS, "split_seed": split_seed}))
    for pair in ["Bb", "Rr", "Жж", "Ωω", "Øø", "Łł", "oø", "lł", "hħ", "dđ", "bƀ", "mт", "lӏ"]:
        assert home[pair[0]] == home[pair[1]], pair
    named = {}
    for name, split in home.items():
        base = unicodedata.name(name).split(" WITH ")[0].replace("CAPITAL ", "").replace("SMALL ", "")
        assert named.setdefault(base, split) == split, name


def test_the_seed_moves_letters_between_splits(task):
    other = split_of(Glyphs(0, **{**ARGUMENTS, "split_seed": 1}))
    assert sum(other[name] != split for name, split in split_of(task).items()) > 100


def test_lookalikes_are_one_class(task):
    names = set(task.data.names)
    for one, *others in ["AΑА", "OΟО", "BΒВ", "oοо", "cс", "pр"]:
        assert one in names
        assert names.isdisjoint(others)
    assert {"A", "B", "C", "G", "O", "Q", "a", "b", "g", "Ж", "Ω", "Ø"} <= names


def test_no_image_is_twice_in_the_data(task):
    """No episode has an image in two classes, or in support and query."""
    images = task.data.x.flatten(1).numpy()
    assert len({image.tobytes() for image in images}) == len(images)


def test_nothing_in_test_nearly_equals_something_in_train(task):
    """The nearest training image of a test image is farther, in mean, than half a letter's ink."""
    offsets = task.data.offsets

    def images(split):
        rows = [r for c in task.classes[split] for r in range(offsets[c], offsets[c + 1])]
        return task.data.x[rows].flatten(1).float() / 255

    test, train = images("test"), images("train")
    apart = torch.cdist(test[::7], train, p=1) / (test[::7].sum(1)[:, None] + train.sum(1))
    nearest = apart.min(1).values
    assert nearest.quantile(0.01) > 0.02
    assert nearest.mean() > 0.15


def test_images_hold_whole_centred_letters(task):
    x = task.data.x[:, 0].float()
    border = torch.cat([x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1]], dim=1)
    assert border.max() == 0
    assert x.amax((1, 2)).min() > 60
    rows, columns = (x > 0).any(2), (x > 0).any(1)
    for having in (rows, columns):
        first = having.float().argmax(1)
        last = 27 - having.flip(1).float().argmax(1)
        assert (first + last - 27).abs().max() <= 1


def test_the_cache_gives_the_same_letters(task, monkeypatch):
    monkeypatch.setattr(glyphs, "build", lambda size: pytest.fail("rendered again"))
    again = Glyphs(0, **ARGUMENTS)
    assert torch.equal(again.data.x, task.data.x)
    assert again.data.names == task.data.names


@pytest.mark.slow
def test_other_sizes_have_the_same_classes(task):
    small = Glyphs(0, **{**ARGUMENTS, "size": 20})
    assert small.spec.input_shape == (1, 20, 20)
    assert len(set(small.data.names) ^ set(task.data.names)) < 20


def test_no_placeholder_is_a_letter():
    from PIL.ImageFont import FreeTypeFont

    letters = render(28)
    font = FreeTypeFont(str(glyphs.font_file("DejaVuSans")), 22)
    box = inked(font, "\U000e0fff")  # unassigned: .notdef
    ours = [styles[0] for styles in letters.values() if 0 in styles]
    assert len(ours) > 500
    assert not any(int((image > 0).sum()) == int((box > 0).sum()) and image.max() == box.max() and
                   np.array_equal(image[image.any(1)][:, image.any(0)], box) for image in ours)  # fmt: skip


def test_distances_and_components():
    a, b = np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8)
    a[0, 0] = b[0, 0] = b[1, 1] = 255
    mean, least = distances([{0: a, 1: a}, {0: a, 1: b}, {2: a}])
    assert mean[0, 1] == pytest.approx((0 + 1 / 3) / 2)
    assert least[0, 1] == 0
    assert mean[0, 2] == least[0, 2] == 1
    assert components(6, [(4, 2), (2, 5), (0, 1)]).tolist() == [0, 0, 2, 3, 2, 2]
    linked = components(4, relatives([ord(c) for c in "OoØk"]))
    assert linked.tolist() == [0, 0, 0, 3]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"way": 200}, "way=200"),
        ({"test_ways": [400]}, "way=400"),
        ({"query": 8}, "shot=1 + query=8"),
        ({"val": 0.5, "test": 0.5}, "task.val=0.5"),
        ({"val": 0.0}, "classes of the 'val' split"),
        ({"size": 4}, "task.size=4"),
    ],
)
def test_impossible_requests_are_one_line(given, words):
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        Glyphs(0, **{**ARGUMENTS, **given})
    assert words in str(error.value)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_picture(task, channels):
    seen = copy.copy(task)
    seen.data = copy.copy(task.data)
    seen.data.x = task.data.x.expand(-1, channels, -1, -1)
    seen.spec = replace(task.spec, input_shape=(channels, 28, 28))
    torch.manual_seed(0)
    model = Conv4(seen.spec, width=8, depth=4, downsample="pool", halvings=None, reduce="flatten", norm_scale=True)
    section = composed("algorithm=protonet", "algorithm.norm=transductive")["algorithm"]
    algorithm = construct(section, model=model, spec=seen.spec)
    figure = seen.picture(algorithm)
    batch = seen.batch("test", [0])
    with torch.no_grad():
        expected = algorithm.adapt(batch.support)(batch.query.x)[0].argmax(-1)
    names = [seen.data.names[c] for c in seen.rows("test", [0], seen.shape)[0][0]]
    texts = [text.get_text() for text in figure.axes[0].texts]
    captions = [text.split(maxsplit=1) for text in texts if text[0] in "✓✗"]
    right = (expected == batch.query.y[0]).tolist()
    assert [sign for sign, _ in captions] == ["✓" if each else "✗" for each in right]
    for (_, shown), label in zip(captions, expected, strict=True):
        assert names[label].startswith(shown.rstrip("…").rstrip())
    assert re.search(rf"{100 * sum(right) / len(right):.0f} % of its \d+ queries right", figure.get_suptitle())
    figure.savefig("picture.png")


def test_only_meta_training_images_are_warped(task):
    plain = Glyphs(0, **{**ARGUMENTS, "augment": 0.0})
    assert torch.equal(task.batch("test", [3]).query.x, plain.batch("test", [3]).query.x)
    warped, still = task.batch("train", [3, 4]), plain.batch("train", [3, 4])
    assert torch.equal(warped.query.y, still.query.y)
    for part in ("support", "query"):
        x, y = getattr(warped, part).x, getattr(still, part).x.float() / 255
        apart = (x - y).abs().sum((2, 3, 4)) / (x + y).sum((2, 3, 4))
        assert apart.min() > 0.01
        assert 0.1 < apart.mean() < 0.7
        assert torch.equal(x[1], getattr(task.batch("train", [4]), part).x[0])


def test_warping():
    image = torch.zeros(1, 1, 1, 9, 9, dtype=torch.uint8)
    image[..., 4, 6] = 255
    maps = torch.zeros(1, 1, 2, 3)
    assert torch.equal(warped(image, maps), image.float() / 255)
    maps[..., 0, 2] = 2 / 9 * 2  # two pixels, in halves of the image
    assert warped(image, maps)[0, 0, 0, 4].round(decimals=4).tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert warped(image.to("meta"), maps.to("meta")).shape == image.shape
