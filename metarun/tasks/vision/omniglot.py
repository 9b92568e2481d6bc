"""Omniglot (Lake et al. 2015): 1623 handwritten characters of 50 alphabets, 20 drawings each."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.errors import UserError, require
from metarun.tasks.archives import DAMAGE, refuse_bomb
from metarun.tasks.class_data import ClassData, content_hash
from metarun.tasks.files import Arrays, cached, download, find, recalled, remember
from metarun.tasks.rng import permutation, uniforms
from metarun.tasks.vision.base import ImageFewShot
from metarun.tasks.vision.images import Preparation, decode, open_image
from metarun.types import Count, DataPath, Episodes, NonNegative, Positive, Resizing, Split

URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/{part}.zip"
CHARACTERS = {"images_background": 964, "images_evaluation": 659}
MD5 = {
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}
DRAWINGS = 20

# Vinyals et al. 2016, as used by Prototypical Networks: by alphabets, but for one that is divided.
VINYALS_VAL = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
VINYALS_TEST = (
    *("Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya"),
    *("Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG"),
    *(f"Gurmukhi/character{i}" for i in (42, 43, 44, 45)),
)


class Omniglot(ImageFewShot):
    """Omniglot with the splits, rotations and preprocessing of the literature.

    Args:
        seed: Seed of the episodes.
        root: Folder of ``images_background`` and ``images_evaluation``, as zips or extracted, directly or under
            ``omniglot``; ``None``: METARUN_DATA, the cache, or a download.
        way: Classes of an episode.
        shot: Support drawings of a class.
        query: Query drawings of a class.
        test_ways: Further ways to test.
        unknown: Classes of an evaluated episode that are not in its support set and have as many queries as others.
        episodes: ``balanced``, or ``varied`` in way and shots as in Meta-Dataset
            (:class:`~metarun.tasks.varied.VariedEpisodes`), whatever ``way``, ``shot`` and ``query`` are.
        split: ``random``: 1200 characters for meta-training and validation, 423 for test (Finn et al. 2017; Nichol et
            al. 2018). ``vinyals``: 1028/172/423 characters by alphabet (Vinyals et al. 2016; Snell et al. 2017).
            ``lake``: the 659 characters of the evaluation set for test, and whole background alphabets with at least
            ``val_classes`` characters for validation.
        split_seed: Seed of the ``random`` and ``lake`` splits.
        val_classes: Number of characters held out for validation (``random``, ``lake``).
        train_on_val: If true, meta-train on the validation characters too, as some authors do after all choices are
            made. Validation then cannot select anything.
        rotations: ``classes`` makes each quarter turn of a character a class of its own; ``task`` turns each class of
            each task by a random number of quarter turns; ``none``.
        rotation_splits: Splits in which ``rotations`` applies.
        size: Height and width in pixels.
        resize: ``nearest`` picks pixels, as Pillow does with these 1-bit images for every filter, so official codes use
            it in effect. ``antialias`` averages to greys (codes that convert first).
        invert: If true, ink is 255 on 0 (MAML, Prototypical Networks); if false, paper is 255 (Reptile).
        augment: Strength of the random affine maps of meta-training images, 0 for none as in all published protocols
            (:class:`~metarun.tasks.vision.base.ImageFewShot`).
    """

    def __init__(
        self,
        seed: int,
        *,
        root: DataPath | None,
        way: Positive,
        shot: Positive,
        query: Count,
        test_ways: Sequence[Positive],
        split: Literal["random", "vinyals", "lake"],
        split_seed: int,
        val_classes: Positive,
        train_on_val: bool,
        rotations: Literal["classes", "task", "none"],
        rotation_splits: Sequence[Split],
        size: Positive,
        resize: Literal["nearest", "antialias"],
        invert: bool,
        augment: NonNegative,
        unknown: Count,
        episodes: Episodes,
    ) -> None:
        turns = 1 if rotations == "none" else 4
        parts = [Part(root, part) for part in CHARACTERS]
        names = [name for part in parts for name in part.characters]
        digests = [digest for part in parts for digest in part.digests]
        characters, classes = len(names), split_characters(names, split, split_seed, val_classes)
        # Character c turned r times is class c + r * characters.
        if turns > 1:
            names = [f"{name}/rot{90 * turn:03}" for turn in range(turns) for name in names]

        def read() -> Tensor:
            x = torch.from_numpy(load(parts, size, resize, turns))
            return 255 - x if invert else x

        places = [str(part.path.resolve()) for part in parts]
        data = ClassData(read, DRAWINGS * np.arange(len(names) + 1), names, digests * turns, places)

        self.characters, self.rotations = characters, rotations
        self.turned: tuple[Split, ...] = () if rotations == "none" else tuple(rotation_splits)
        if rotations == "classes":
            for part in self.turned:
                classes[part] = np.concatenate([classes[part] + turn * characters for turn in range(4)])
        self.held_out_val = not train_on_val
        if train_on_val:
            classes["train"] = np.concatenate([classes["train"], classes["val"]])
        self.resize, self.ink, self.augment = resize, "light" if invert else "dark", augment
        self.preprocessing = {"size": size, "resize": resize, "invert": invert}
        self.partition = {"split": split} if split == "vinyals" else {"split": split, "split_seed": split_seed}
        shape = {
            "way": way,
            "shot": shot,
            "query": query,
            "test_ways": test_ways,
            "unknown": unknown,
            "episodes": episodes,
        }
        super().__init__(data, classes, seed=seed, name="omniglot", input_shape=(1, size, size), **shape)  # type: ignore[arg-type]

    def draw(self, split: Split, indices: Sequence[int], way: int) -> NDArray[np.int64]:
        drawn = super().draw(split, indices, way)
        if self.rotations != "task" or split not in self.turned:
            return drawn
        turns = (4 * uniforms(self.seed, split, indices, way, stream=2)).astype(np.int64)
        return drawn + turns * self.characters

    def numbers(self, split: Split, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        # A random turn of a task does not make a new class.
        return super().numbers(split, drawn % self.characters if self.rotations == "task" else drawn)

    def protocol(self) -> dict[str, Any]:
        turned = {"rotations": self.rotations, "rotation_splits": list(self.turned)}
        seen = {} if self.held_out_val else {"train_on_val": True}
        warped = {name: value for name, value in self.augmentation("augment").items() if value}
        return {**super().protocol(), **self.partition, **seen, **turned, **self.preprocessing, **warped}


def split_characters(names: Sequence[str], split: str, seed: int, val_classes: int) -> dict[Split, NDArray[np.int64]]:
    """Return the character numbers of each split; ``names`` are ``Alphabet/characterNN``, the background set first."""
    if split == "vinyals":
        val = np.array([belongs(name, VINYALS_VAL) for name in names])
        test = np.array([belongs(name, VINYALS_TEST) for name in names])
        return {
            "train": np.flatnonzero(~val & ~test),
            "val": np.flatnonzero(val),
            "test": np.flatnonzero(test),
        }
    if split == "random":
        require(
            val_classes < 1200,
            f"task.val_classes={val_classes}: must be less than the 1200 training characters",
        )
        order = permutation(seed, len(names))
        kept = 1200 - val_classes
        return {
            "train": np.sort(order[:kept]),
            "val": np.sort(order[kept:1200]),
            "test": np.sort(order[1200:]),
        }
    background = CHARACTERS["images_background"]
    alphabets = np.array([name.split("/")[0] for name in names])
    unique = np.unique(alphabets[:background])
    val = np.zeros(len(names), dtype=bool)
    for i in permutation(seed, len(unique)):
        if val.sum() < val_classes:
            val |= alphabets == unique[i]
    require(not val[:background].all(), f"task.val_classes={val_classes}: must leave some of the {background}")
    return {
        "train": np.flatnonzero(~val[:background]),
        "val": np.flatnonzero(val),
        "test": np.arange(background, len(names)),
    }


def belongs(name: str, listed: Sequence[str]) -> bool:
    """Return whether ``Alphabet/characterNN`` or its alphabet is listed."""
    return name in listed or name.split("/")[0] in listed


def load(parts: Sequence[Part], size: int, resize: Resizing, turns: int) -> NDArray[np.uint8]:
    """Return all images [turns * 32460, 1, size, size], paper 255, from the cache or decoded once."""
    content = [digest for part in parts for digest in part.digests]
    key = {"format": 2, "size": size, "resize": resize, "turns": turns, "content": content}

    def build() -> Arrays:
        drawings = [(part, file) for part in parts for files in part.characters.values() for file in files]
        images = np.empty((len(drawings), turns, size, size), dtype=np.uint8)
        decode(enumerate(drawings), lambda d: d[0].image(d[1], size, resize, turns), images, "decoding omniglot")
        return {"x": np.ascontiguousarray(images.swapaxes(0, 1)).reshape(-1, 1, size, size)}

    return cached("omniglot", key, build)["x"]


def contents(folder: Path) -> dict[str, int]:
    """Return the CRC-32 of every PNG file below ``folder`` by relative path, remembered until a file changes."""
    stats = {file.relative_to(folder).as_posix(): file.stat() for file in sorted(folder.rglob("*.png"))}
    stamps = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()]
    key = {"kind": "omniglot", "root": str(folder.resolve()), "files": stamps}
    found = recalled("index", key)
    if found is None:
        found = {name: zlib.crc32((folder / name).read_bytes()) for name in stats}
        remember("index", key, found)
    return found


class Part:
    """The background or the evaluation set, from its zip or its extracted folder.

    Attributes:
        characters: The files of the 20 drawings of each ``Alphabet/characterNN``, sorted.
        digests: Hash of each character's files, the same for a zip and its extracted folder.

    Raises:
        UserError: It is not a complete part of Omniglot.
    """

    def __init__(self, root: str | None, part: str) -> None:
        places = [f"{at}{part}{end}" for at in ("omniglot/", "") for end in (".zip", "")]
        self.path = find(root, *places) or download(URL.format(part=part), f"md5:{MD5[part]}", places[0])
        self.archive: zipfile.ZipFile | None = None
        if self.path.is_dir():
            stamps = contents(self.path)
        else:
            try:
                self.archive = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise UserError(f"{self.path}: not a readable zip file ({error})") from error
            stamps = {info.filename: info.CRC for info in self.archive.infolist()}

        drawn: dict[str, list[str]] = {}
        for file in sorted(stamps):
            match = re.search(r"([^/]+/character\d\d)/\d{4}_\d\d\.png$", file)
            if match and "__MACOSX" not in file:
                drawn.setdefault(match[1], []).append(file)
        self.characters = dict(sorted(drawn.items()))
        whole = sum(len(files) == DRAWINGS for files in drawn.values())
        require(
            whole == len(drawn) == CHARACTERS[part],
            f"{self.path}: has {whole} characters with {DRAWINGS} drawings (of {len(drawn)}), "
            f"not the {CHARACTERS[part]} of {part}; extract or fetch it again",
        )
        self.digests = [
            content_hash(json.dumps([stamps[f] for f in files]).encode()) for files in self.characters.values()
        ]

    def image(self, file: str, size: int, resize: Resizing, turns: int) -> NDArray[np.uint8]:
        """Return one drawing after 0..turns-1 quarter turns, as if applied before resizing: [turns, size, size]."""
        try:
            if self.archive:
                refuse_bomb(self.archive.getinfo(file))
            raw = self.archive.read(file) if self.archive else (self.path / file).read_bytes()
        except DAMAGE as error:
            raise UserError(f"{self.path}: {file} cannot be read ({error})") from error
        drawing, prepare = open_image(raw, f"{self.path}: {file}"), Preparation(1, size, size, resize)
        if resize == "nearest":  # picking pixels commutes with turning, and a small image is turned in less time
            small = prepare.resized(drawing)[0]
            return np.stack([np.rot90(small, turn) for turn in range(turns)])
        return np.concatenate([prepare.resized(drawing.rotate(90 * turn)) for turn in range(turns)])
