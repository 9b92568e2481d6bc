"""``metarun cache``: what is listed, what is cleared, and what is left alone."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from metarun.cli import main
from metarun.tasks.files import cached, mapped, remember


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of 2 MB of decoded images, rendered letters, a download, a leftover, and files of the user's own."""
    root = tmp_path / "cache"
    monkeypatch.setenv("METARUN_CACHE", str(root))
    mapped("folder", {"x": 1}, lambda allocate: allocate((2_000_000,)).fill(1), what="9 images of my photos")
    cached("glyphs", {"x": 1}, lambda: {"x": np.ones(10)})
    (root / "text").mkdir()
    (root / "text" / "data.json").write_text("{}")
    remember("downloads", {"file": "text/data.json"}, {"file": "text/data.json", "url": "http://x"})
    (root / "folder" / f".{'a' * 20}.npy.123.0123abcd").write_bytes(b"half")
    (root / "mine.txt").write_text("mine")
    (root / "folder" / "mine.npy").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / f"{'b' * 20}.npz").write_text("mine")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    remember("downloads", {"file": "away"}, {"file": "../elsewhere/" + "b" * 20 + ".npz", "url": ""})
    return root


def test_the_list_says_what_how_large_and_when(cache, capsys):
    assert main(["cache"]) == 0
    told = capsys.readouterr().out
    assert "2 MB" in told
    assert "folder: 9 images of my photos" in told
    assert time.strftime("%Y-%m-%d") in told
    assert "download" in told
    assert main(["doctor"]) in (0, 1)
    assert "2 MB (metarun cache lists it)" in capsys.readouterr().out


def test_clear_deletes_what_metarun_made_and_nothing_else(cache, tmp_path, capsys):
    assert main(["cache", "clear"]) == 0
    assert "cleared 4 of 4 entries, 2 MB" in capsys.readouterr().out
    left = sorted(path.name for path in cache.rglob("*") if path.is_file() and not path.is_symlink())
    assert [name for name in left if "mine" in name] == ["mine.npy", "mine.txt"]
    assert len(left) == 3  # and the note that names a file outside, which is no download
    assert (tmp_path / "elsewhere" / f"{'b' * 20}.npz").exists()


def test_only_what_was_not_used_for_so_long_is_cleared(cache, capsys):
    for path in (cache / "folder").iterdir():
        os.utime(path, (time.time() - 10 * 86400,) * 2)
    assert main(["cache", "clear", "--older-than=7"]) == 0
    assert "cleared 2 of 4 entries, 2 MB" in capsys.readouterr().out
    assert list((cache / "glyphs").iterdir())


def test_use_is_noted(cache):
    (stored,) = (cache / "glyphs").iterdir()
    os.utime(stored, (1, 1))
    cached("glyphs", {"x": 1}, dict)
    assert stored.stat().st_mtime > 1


@pytest.mark.parametrize(
    "words", [["clean"], ["clear", "--older-than"], ["clear", "--older-than=x"], ["--older-than=3"]]
)
def test_what_is_wrong_is_one_line(cache, capsys, words):
    assert main(["cache", *words]) == 2
    told = capsys.readouterr().err
    assert "--older-than" in told or "metarun cache [clear [--older-than DAYS]]" in told
    assert told.count("\n") == 1
    assert list((cache / "folder").iterdir())


def test_it_needs_neither_torch_nor_numpy(cache):
    code = "import sys; from metarun.cli import main; main(['cache']); print({'torch', 'numpy'} & {*sys.modules})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.endswith("set()\n")


def test_a_cache_that_is_not_there_is_empty(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "none"))
    assert main(["cache"]) == 0
    assert main(["cache", "clear"]) == 0
    assert "0 B in 0 entries" in capsys.readouterr().out
