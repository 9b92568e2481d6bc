"""``metarun serve``: a real server process, asked by HTTP and by a real headless browser."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metarun.adapted import load
from metarun.cli import main
from tests.export import learners
from tests.serve.browser import opened

ROOT = Path(__file__).parents[2]
MARKUP = "<img src=x onerror=\"document.title='run'\">"


def served(folder: Path, *words: str) -> tuple[subprocess.Popen[str], str]:
    """A server process and the address that it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "metarun", "serve", str(folder), "--port=0", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving    http://127.0.0.1:"), line
    return process, line.split()[1]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("images")
    learner = learners.images(folder)
    learner.classes[1] = MARKUP  # a folder of that name would do
    learner.abstain = 0.2
    sections = learners.options(model={"option": "conv4", "width": 4, "depth": 2}, algorithm={"option": "protonet"})
    learner.save(folder, sections)
    for name, shade in (("dark", 10), ("grey", 110), ("light", 235)):
        Image.fromarray(np.full((40, 50, 3), shade, np.uint8)).save(folder / f"{name}.png")
    process, url = served(folder, "--limit=1")
    yield folder, url
    process.terminate()
    process.wait(20)


def ask(
    url: str, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, Any, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=60)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, names)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    is_json = response.getheader("Content-Type", "").startswith("application/json")
    return response.status, json.loads(content) if is_json else content.decode(), response


def test_an_image_is_classified_as_in_python(images: tuple[Path, str]) -> None:
    folder, url = images
    learner = load(folder)
    for name in ("dark", "grey", "light"):
        expected = learner.predict(folder / f"{name}.png")
        status, found, _ = ask(url, "POST", "/predict", (folder / f"{name}.png").read_bytes(), Content_Type="image/png")
        assert status == 200
        assert found[0]["predicted"] == expected.labels[0]
        given = dict(found[0]["probabilities"])
        assert [given[c] for c in learner.classes] == pytest.approx(expected.probabilities[0].tolist(), abs=1e-5)
    about = ask(url, "GET", "/about")[1]
    assert (about["classes"], about["abstain"], about["limit"]) == (learner.classes, 0.2, 1_000_000)


def test_five_gigabytes_are_refused_in_a_line_and_not_read(images: tuple[Path, str]) -> None:
    """The answer comes before anything was sent but the header."""
    _, url = images
    host, port = url.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: image/png\r\n"
                           f"Content-Length: {5 << 30}\r\n\r\n".encode())  # fmt: skip
        answer = connection.makefile("rb").read().decode()  # until the server ends the connection
    assert answer.startswith("HTTP/1.1 413 ")
    assert json.loads(answer.partition("\r\n\r\n")[2]) == {
        "error": "the upload has 5368709120 bytes; at most 1,000,000 are read"
    }
    assert ask(url, "GET", "/about")[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "line"),
    [
        ("/predict", b"x", {"Content_Type": "application/pdf"}, 415, "application/pdf is not read; allowed: image/png"),
        ("/predict", b"no image", {"Content_Type": "image/png"}, 422, "this is not a readable image"),
        ("/predict", iter([b"x"]), {"Content_Type": "image/png"}, 411, "does not say its size"),
        ("/other", b"x", {"Content_Type": "image/png"}, 404, "predictions are at /predict"),
        ("/predict", b"x", {"Content_Type": "image/png", "Origin": "http://evil.example"}, 403, "are not answered"),
        ("/predict", b"x", {"Content_Type": "image/png", "Host": "evil.example"}, 403, "is not called evil.example"),
        ("/predict", b"x", {"Content_Type": "image/png", "Host": "[::1"}, 400, "//[::1 is no address"),
        ("/predict", b"x", {"Content_Type": "image/png", "Origin": "http://["}, 400, "http://[ is no address"),
    ],
)
def test_other_requests_are_refused_in_a_line(
    path: str, body: Any, headers: dict[str, str], status: int, line: str, images: tuple[Path, str]
) -> None:
    found, said, response = ask(images[1], "POST", path, body, **headers)
    assert (found, line in said["error"]) == (status, True), said
    assert "\n" not in said["error"]
    assert "script-src 'self'" in response.getheader("Content-Security-Policy", "")


def test_a_small_file_of_many_pixels_is_not_decoded(images: tuple[Path, str]) -> None:
    folder, url = images
    Image.new("1", (9000, 9000)).save(folder / "large.png")
    body = (folder / "large.png").read_bytes()
    assert len(body) < 1_000_000
    status, said, _ = ask(url, "POST", "/predict", body, Content_Type="image/png")
    assert (status, said["error"]) == (422, "the image has 9000 x 9000 pixels; at most 50,000,000 are read")


def test_rows_of_a_table(tmp_path: Path) -> None:
    learner = learners.numbers(tmp_path, "ridge", steps=None)
    process, url = served(tmp_path)
    try:
        status, found, _ = ask(url, "POST", "/predict", b"0.5\n-0.25\n", Content_Type="text/csv")
        assert status == 200
        values = [each["values"][0] for each in found]
        assert values == pytest.approx(learner.predict([[0.5], [-0.25]]).values[:, 0].tolist(), abs=1e-5)
        status, said, _ = ask(url, "POST", "/predict", b"a\nb,c\n", Content_Type="text/csv")
        assert status == 422
        assert str(tmp_path) not in said["error"]
        assert "/tmp" not in said["error"]
    finally:
        process.terminate()
        process.wait(20)


def test_what_is_dropped_on_the_page_is_classified(images: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = images
    (folder / "fake.png").write_bytes(b"no image")

    async def browse() -> None:
        async with opened(url, tmp_path / "profile") as page:
            await page.wait_for("document.getElementById('drop')?.hidden === false")
            await page.drop("#drop", [folder / "dark.png", folder / "grey.png", folder / "fake.png"])
            await page.wait_for("document.querySelectorAll('article[data-done]').length == 3")
            heads = await page.value("[...document.querySelectorAll('article h2')].map(e => e.textContent)")
            assert heads == [MARKUP, "dark"]  # the newest first; markup of a class's name is text
            assert await page.value("document.querySelector('article .error').textContent") == (
                "this is not a readable image"
            )
            assert await page.value("document.title") != "run"
            assert await page.value("document.querySelectorAll('article img').length") == 3
            (folder / "big.png").write_bytes(bytes(1_000_001))
            await page.drop("#drop", [folder / "big.png"])
            said = await page.wait_for("document.getElementById('message').textContent")
            assert said.startswith("big.png has 1,000,001 bytes; at most 1,000,000 are read")
            await page.screenshot(tmp_path / "page.png")

    asyncio.run(browse())
    assert (tmp_path / "page.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["serve"], "serve needs a LEARNER"),
        (["serve", "nowhere"], "nowhere: holds no adapted learner"),
        (["serve", "nowhere", "--port=x"], "--port needs an integer of at least 0, not 'x'"),
        (["serve", "LEARNER", "--port=70000"], "cannot listen there"),
        (["serve", "LEARNER", "--host=no.such.host.invalid"], "cannot listen there"),
    ],
)
def test_asked_wrongly(
    words: list[str], line: str, images: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(images[0]) if word == "LEARNER" else word for word in words]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert "Traceback" not in said
