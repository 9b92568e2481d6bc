"""A page in a real headless browser, driven by its own debugging protocol; skips, loudly, without one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Page:
    """A tab of the browser."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._last = socket, 0

    async def send(self, method: str, **values: Any) -> dict[str, Any]:
        self._last += 1
        await self._socket.send_json({"id": self._last, "method": method, "params": values})
        while True:
            answer = await self._socket.receive_json(timeout=60)
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                return answer["result"]

    async def value(self, code: str) -> Any:
        """The value of an expression of JavaScript."""
        found = await self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def wait_for(self, code: str, seconds: float = 60) -> Any:
        """The first value of an expression that is true."""
        for _ in range(int(seconds / 0.2)):
            if value := await self.value(code):
                return value
            await asyncio.sleep(0.2)
        shown = await self.value("document.body.innerText")
        raise AssertionError(f"{code} did not become true; the page says: {shown}")

    async def drop(self, selector: str, files: Sequence[Path]) -> None:
        """Drop files on an element, as a person does with the mouse."""
        box = await self.value(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
                               f"(document.querySelector('{selector}').getBoundingClientRect())")  # fmt: skip
        data = {"items": [], "files": list(map(str, files)), "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await self.send("Input.dispatchDragEvent", type=kind, x=box[0], y=box[1], data=data)
            if kind == "dragOver":  # a drop before the page has allowed it is ignored
                await self.wait_for(f"document.querySelector('{selector}').classList.contains('over')")

    async def screenshot(self, file: Path) -> None:
        found = await self.send("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(found["data"]))


@contextlib.asynccontextmanager
async def opened(url: str, profile: Path) -> AsyncIterator[Page]:
    """The page at an address, in a browser of its own with an empty profile."""
    aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not installed, which speaks to the browser")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"NO BROWSER: none of {', '.join(NAMES)} is installed")
    words = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
             "--remote-debugging-port=0", f"--user-data-dir={profile}", "--window-size=900,760",
             "about:blank"]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        place = profile / "DevToolsActivePort"
        for _ in range(300):
            if place.is_file() and place.read_text().strip():
                break
            await asyncio.sleep(0.2)
        port = place.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                tab = next(each for each in await answer.json() if each["type"] == "page")
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                await page.send("Page.enable")
                await page.send("Page.navigate", url=url)
                yield page
                await page.send("Browser.close")
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        if process.poll() is None:
            process.kill()
            process.wait()
