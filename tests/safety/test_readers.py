"""Damaged and hostile files are refused in one line, soon and in little memory; one of many stops no other."""

from __future__ import annotations

import gzip
import io
import json
import logging
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.cli import main
from metarun.errors import UserError
from metarun.runs.history import Job, runs_of, runs_of_sweep
from metarun.tasks.archives import FREE, members
from metarun.tasks.pickles import read_pickle
from metarun.tasks.vision.images import open_image
from metarun.tracking.rundir import RunDirectory
from metarun.training import checkpoint
from metarun.untrusted import plain, read_arrays, read_json, read_yaml

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
YAML = {
    "aliases that grow": BOMB,
    "merges that grow": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: 1}}\n" for i in range(1, 30)),
    "an alias of itself": "a: &a [*a]",
    "too deep": "[" * 100_000,
    "too deep in another way": "{a: " * 5_000,
    "too large": "a: " + "x" * (5 << 20),
    "a long number": "a: 0x" + "f" * 1_000_000,
    "a long sexagesimal number": "a: 1" + ":1" * 100_000,
    "an object": "a: !!python/object/apply:os.system ['touch TOUCHED']",
    "another object": "a: !!python/name:os.system",
    "a date that is none": "a: 2021-99-99",
    "a tag's wrong content": "a: !!timestamp never",
    "a key that is a list": "? [1]\n: 2",
    "no text": "\x00\x01",
    "nothing": "",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML.keys())
def test_yaml(run: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").write_text(text)
    for command in ("resume", "eval"):
        assert main([command, str(run)]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert main(["report", str(run)]) in (0, 2)
    options = tmp_path / "options" / "model"
    options.mkdir(parents=True)
    (options / "mine.yaml").write_text(text)
    if text:
        with pytest.raises(UserError):
            read_yaml(options / "mine.yaml")
        assert main(["--config-dir", str(tmp_path / "options"), "model=mine", "task=regression/sinusoid"]) == 2
        assert main(["list", "models", "--config-dir", str(tmp_path / "options")]) in (0, 2)
    assert not Path("TOUCHED").exists()


JSON = {
    "cut": '{"a": 1',
    "too deep": "[" * 200_000,
    "a long number": '{"seed": ' + "9" * 100_000 + "}",
    "a list": "[1]",
    "a number": "1",
    "nothing": "",
    "no text": "\x80\x81",
    "null": "null",
    "other types": '{"test": {"mse": "x"}, "seed": [], "protocol": 3, "adaptation": {}, "state": ["finished"], '
    '"choices": [1], "asked": 1, "id": {}, "step": 7, "threads": -1, "group": []}',
}
FILES = ("summary.json", "meta.json", "status.json", "metrics.jsonl")


@pytest.mark.parametrize("text", JSON.values(), ids=JSON.keys())
@pytest.mark.parametrize("name", FILES)
def test_one_damaged_run_is_named_and_left_out(
    run: Path, name: str, text: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    good = run.with_name("good_s0")
    shutil.copytree(run, good)
    (run / name).write_bytes(text.encode("latin1") + b"\n")
    assert main(["report", "outputs"]) == 0
    assert "1 finished run of" in capsys.readouterr().out
    config = RunDirectory(good).config()
    logging.getLogger("metarun").addHandler(caplog.handler)
    found = [each.path.name for each in runs_of(config)]
    logging.getLogger("metarun").removeHandler(caplog.handler)
    assert good.name in found
    sweep = Path("outputs/multirun/2026-01-01_00-00-00-000000")
    (sweep / "jobs").mkdir(parents=True)
    (sweep / "jobs" / "0.json").write_bytes(text.encode("latin1"))
    (sweep / "jobs" / "x.json").write_text("{}")
    list(runs_of_sweep(sweep))
    assert Job.read(sweep, 0) is None
    code = main(["resume", str(run), "runner.iterations=2"])
    assert code in (0, 2)
    said = capsys.readouterr().err
    assert "Error:" not in said


def header(shape: str, kind: str = "<f8") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (118 - len(text) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


ARRAYS: dict[str, dict[str, bytes]] = {
    "a header of 16 GB": {"mse.npy": header("(2147483648,)")},
    "a header of all memory": {"mse.npy": header("(9223372036854775807,)")},
    "negative lengths": {"mse.npy": header("(-1, -8)") + b"x" * 64},
    "objects": {"mse.npy": header("(1,)", "|O") + pickle.dumps([1])},
    "texts": {"mse.npy": header("(1,)", "|S1000000000")},
    "a header that is code": {"mse.npy": header("__import__('os').system('touch TOUCHED')")},
    "a bomb": {"mse.npy": header("(1073741824,)", "|u1") + bytes(1 << 27)},
    "no array": {"mse.npy": b"hello"},
    "a path that leads outside": {"../../x.npy": header("(1,)") + bytes(4)},
    "no archive": {},
}


@pytest.mark.parametrize("content", ARRAYS.values(), ids=ARRAYS.keys())
def test_arrays(run: Path, content: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(run / "test.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    if not content:
        (run / "test.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match="cannot be read"):
        read_arrays(run / "test.npz", limit=1 << 26)
    assert main(["report", str(run)]) in (0, 2)
    assert "test.npz" in capsys.readouterr().out.replace("\n", "") or "bomb" in str(content)[:0]
    assert not Path("TOUCHED").exists()


def test_sound_arrays_are_read_as_they_are(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "c": np.zeros((0, 2)),
    }
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    found = read_arrays(tmp_path / "x.npz")
    assert all(
        np.array_equal(found[name], array) and found[name].dtype == array.dtype for name, array in arrays.items()
    )


def bomb_of_lists() -> bytes:
    """A list of ten times a list of ten times a list ..."""
    return (
        b"\x80\x04](K\x01e"
        + b"".join(b"\x94](" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(90))
        + b"."
    )


def bomb_of_keys() -> bytes:
    """A dictionary with a key that is a tuple of twice a tuple of twice a tuple ..., whose hash takes for ever."""
    return (
        b"\x80\x04}(K\x01\x85"
        + b"".join(b"\x94h" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(90))
        + b"K\x01u."
    )


PICKLES = {
    "a process": b"cos\nsystem\n(S'touch TOUCHED'\ntR.",
    "a builtin": b'c__builtin__\neval\n(S\'open("TOUCHED","w")\'\ntR.',
    "texts of all memory": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
    "bytes of all memory": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b"x.",
    "lists that grow": bomb_of_lists(),
    "keys that grow": bomb_of_keys(),
    "a list of itself": b"\x80\x02]q\x00h\x00a.",
    "too deep": b"]" * 10_000 + b"a" * 9_999 + b".",
    "a long number": b"I" + b"9" * 100_000 + b"\n.",
    "a frozen set": b"\x80\x04(K\x01\x91.",
    "a new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "a type of lists": b"\x80\x02cnumpy\ndtype\n]\x85R.",
    "an axis of all memory": pickle.dumps(np.zeros(2), protocol=2).replace(
        b"K\x02\x85", b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"
    ),
    "nothing": b"",
}


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES.keys())
def test_pickles(content: bytes) -> None:
    with pytest.raises(UserError, match=r"^x\.pkl: [^\n]*$"):
        read_pickle(io.BytesIO(content), "x.pkl")
    assert not Path("TOUCHED").exists()


def test_numbers_of_objects_cost_no_memory() -> None:
    """Memory for four thousand million objects would be taken by the reader that is written in C."""
    assert read_pickle(io.BytesIO(b"\x80\x02K\x01r\xff\xff\xff\xff."), "x.pkl") == 1


def packed_zip(path: Path, name: str, size: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(size))


def packed_tar(path: Path, name: str, size: int) -> None:
    with gzip.open(path, "wb", compresslevel=9) as file, tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = size
        tar.addfile(info, io.BytesIO(bytes(size)))


def sparse_tar(path: Path, name: str, size: int) -> None:
    """A member that says it is far larger than the archive."""
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = size
        path.write_bytes(b"")
        tar.fileobj.write(info.tobuf())  # type: ignore[union-attr]


@pytest.mark.parametrize(("make", "suffix"), [(packed_zip, ".zip"), (packed_tar, ".tar.gz"), (sparse_tar, ".tar")])
def test_archives_that_grow(tmp_path: Path, make: Callable[[Path, str, int], None], suffix: str,
                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("metarun.tasks.archives.FREE", 1 << 20)
    path = tmp_path / f"x{suffix}"
    make(path, "a/1.png", 64 << 20)
    with pytest.raises(UserError, match=r"x\.(zip|tar)"):
        [file.read() for _, file in members(path)]
    assert FREE > 1 << 20


def test_members_may_have_any_name_and_links_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("../../evil.png", "/etc/evil.png", "a/b.png"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("c.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    found = {name: file.read() for name, file in members(path)}
    assert found == dict.fromkeys(("../../evil.png", "/etc/evil.png", "a/b.png"), b"abc")
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


def test_a_damaged_member_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(range(256)) * 40)
    content = bytearray(path.read_bytes())
    content[60:80] = b"\xff" * 20
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"x\.zip"):
        [file.read() for _, file in members(path)]


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


IMAGES = {
    "an image of 40 thousand million pixels": png(200_000, 200_000, b""),
    "cut": png(20, 20, b"")[:40],
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
    "text": b"hello",
    "nothing": b"",
}


@pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES.keys())
def test_images(content: bytes) -> None:
    with pytest.raises(UserError, match=r"^x\.png: "):
        open_image(content, "x.png")
    assert Image.MAX_IMAGE_PIXELS is not None


class Touch:
    def __reduce__(self) -> Any:
        return open, ("TOUCHED", "w")


def legacy(path: Path) -> None:
    torch.save({"algorithm": {"parameters": {}}}, path, _use_new_zipfile_serialization=False)


def code(path: Path) -> None:
    torch.save({"algorithm": {"parameters": {}}, "iteration": Touch()}, path)


def expanded(path: Path) -> None:
    torch.save({"algorithm": {"parameters": {"x": torch.zeros(1).expand(1 << 40)}}, "iteration": 1}, path)


def repacked(path: Path) -> None:
    torch.save({"algorithm": {"parameters": {"x": torch.zeros(1 << 20)}}, "iteration": 1}, path)
    with zipfile.ZipFile(path) as archive:
        content = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def stored(**state: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(state, path)


CHECKPOINTS: dict[str, Callable[[Path], Any]] = {
    "code": code,
    "the format before zip": legacy,
    "a tensor that is more than its file": expanded,
    "a packed one": repacked,
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Touch())),
    "no dictionary": lambda path: torch.save([1], path),
    "other entries": stored(x=1),
    "parameters of another kind": stored(algorithm={"parameters": [1]}, iteration=1),
    "no iteration": stored(algorithm={"parameters": {}}),
    "other parameters": stored(algorithm={"parameters": {"x": torch.zeros(2)}}, iteration=1),
    "parameters that are texts": stored(algorithm={"parameters": {"x": "y"}}, progress={"iteration": 1}),
    "progress that is none": stored(algorithm={"parameters": {}}, progress={"iteration": 1, "restore": 3}),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "nothing": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("make", CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_checkpoints(run: Path, make: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("last", "best"):
        if (run / "checkpoints" / f"{name}.pt").exists():
            make(run / "checkpoints" / f"{name}.pt")
    for words in (["resume", str(run), "runner.iterations=4"], ["eval", str(run)]):
        assert main(words) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert "checkpoint" in said
        assert "Error:" not in said
    assert not Path("TOUCHED").exists()


def test_a_sound_checkpoint_is_read(run: Path) -> None:
    assert "algorithm" in checkpoint.load(run / "checkpoints" / "last.pt", torch.device("cpu"))


def test_plain_values_end() -> None:
    grown: Any = [1]
    for _ in range(60):
        grown = [grown, grown]
    assert not plain(grown)
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    assert not plain(deep)
    assert not plain({1: 2})
    assert not plain({"a": torch.zeros(1)})
    assert plain({"a": [1, 2.0, None, "x", {"b": True}]})


@pytest.mark.parametrize("name", [".", "..", "a/b", "a\x1b[31m", "a\nb", "\u202ea"])
def test_a_name_is_one_of_a_directory(run: Path, name: str) -> None:
    import yaml

    config = yaml.safe_load((run / "config.yaml").read_text())
    config["name"] = name
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["eval", str(run)]) == 2


def test_json_of_one_object(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"a": 10**19}))
    assert read_json(tmp_path / "x.json") == {"a": 10**19}
