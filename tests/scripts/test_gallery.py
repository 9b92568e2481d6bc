"""The gallery: every picture has its commands, and every page that shows one says them."""

from __future__ import annotations

import re
from pathlib import Path

from metarun.cli.pages import DOCS
from metarun.config.check import check
from metarun.config.compose import compose, named
from tests.script import script

MAX_BYTES = 800_000


def test_pictures_have_commands_that_the_pages_state() -> None:
    gallery = script("gallery")
    files = [*gallery.GALLERY.iterdir()]
    assert {path.name for path in files} == {*gallery.PICTURES}
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    pages = [Path(DOCS).parents[1] / "README.md", *Path(DOCS).glob("*.md")]
    texts = [re.sub(r"\s+", " ", page.read_text(encoding="utf-8")) for page in pages]
    for file, commands in gallery.PICTURES.items():
        shown = [text for text in texts if f"gallery/{file}" in text]
        assert shown, f"no page shows {file}"
        for command in commands:
            check(named(compose(command.split())))
            assert any(f"metarun {command}`" in text for text in shown), f"{file}: no page says metarun {command}"
