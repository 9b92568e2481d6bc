"""Data roots, the cache and downloads, against a real HTTP server on the loopback."""

import hashlib
import http.server
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from metarun import stopping
from metarun.errors import Interrupted, RunFailed, UserError
from metarun.tasks.cache import entries
from metarun.tasks.files import atomic, cache_dir, cached, download, find, mapped, recalled, remember


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """An own cache and METARUN_DATA."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("METARUN_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_find_looks_in_root_then_data_then_cache(places):
    assert find(None, "set/a.zip", "a.zip") is None
    in_cache = touch(places / "cache" / "a.zip")
    assert find(None, "set/a.zip", "a.zip") == in_cache
    in_data = touch(places / "data" / "a.zip")
    assert find(None, "set/a.zip", "a.zip") == in_data
    first = touch(places / "data" / "set" / "a.zip")
    assert find(None, "set/a.zip", "a.zip") == first
    in_root = touch(places / "own" / "a.zip")
    assert find(str(places / "own"), "set/a.zip", "a.zip") == in_root


@pytest.mark.parametrize("way", [cached, mapped])
def test_what_two_need_at_once_is_built_once(way, places, caplog):
    """Two runs of a sweep that embed the same images, say; the second waits, and may be stopped meanwhile."""
    caplog.set_level("INFO", "metarun")
    begun, go_on, built = threading.Event(), threading.Event(), []

    def build(allocate=None):
        built.append(threading.current_thread())
        begun.set()
        assert go_on.wait(20)
        if allocate is None:
            return {"a": np.ones(3)}
        return allocate((3,)).fill(1)

    def waits():
        return any("waiting for another process" in message for message in caplog.messages)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(way, "kind", {"size": 3}, build)
        assert begun.wait(20)
        stopping.listen(lambda: 2 if waits() else None)
        with pytest.raises(Interrupted):
            way("kind", {"size": 3}, build)
        stopping.forget()
        second = pool.submit(way, "kind", {"size": 3}, build)
        go_on.set()
        arrays = [found["a"] if way is cached else found for found in (first.result(20), second.result(20))]
    assert [array.tolist() for array in arrays] == [[1, 1, 1]] * 2
    assert len(built) == 1
    assert [file.name for file in (places / "cache" / "kind").iterdir() if file.suffix == ".lock"] == []


def test_a_lock_that_a_killed_process_left_holds_nobody_up_and_is_cleared(places):
    cached("kind", {"size": 3}, lambda: {"a": np.ones(3)})
    (made,) = (places / "cache" / "kind").iterdir()
    made.unlink()
    left = touch(made.with_name(f".{made.stem}.lock"))
    assert [entry.files for entry in entries()] == [[left]]
    assert cached("kind", {"size": 3}, lambda: {"a": np.ones(3)})["a"].tolist() == [1, 1, 1]
    assert not left.exists()


def test_what_the_cache_keeps_of_a_set_is_not_the_set(places):
    """Images that lay elsewhere are decoded into a folder of the cache that has the name of the set."""
    mapped("set", {"size": 3}, lambda allocate: allocate((2, 2)).fill(1))
    assert find(None, "set") is None
    touch(places / "cache" / "set" / "images.zip")
    assert find(None, "set") == places / "cache" / "set"


def test_a_data_folder_that_is_not_there_is_named(places, monkeypatch):
    monkeypatch.setenv("METARUN_DATA", str(places / "dat"))
    with pytest.raises(UserError, match=r"METARUN_DATA=.*dat: no such folder - did you mean '.*data'"):
        find(None, "set")


def test_an_explicit_root_must_hold_the_data(places):
    touch(places / "data" / "a.zip")
    empty = places / "empty"
    empty.mkdir()
    for root, words in [
        (empty, "none of a.zip"),
        (empty / "no", "no such folder"),
        (places / "data/a.zip", "not a"),
    ]:
        with pytest.raises(UserError, match=r"^[^\n]*$") as error:
            find(str(root), "a.zip")
        assert f"task.root={root}" in str(error.value)
        assert words in str(error.value)


def test_atomic_leaves_nothing_behind_on_failure(places):
    target = places / "file"
    target.write_text("old")

    def fail() -> None:
        with atomic(target) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_text() == "old"
    assert [p.name for p in places.iterdir() if p.is_file()] == ["file"]


def test_cached_builds_once_per_key_and_again_when_damaged():
    calls = []

    def build():
        calls.append(1)
        return {"x": np.arange(5, dtype=np.uint8), "names": np.array(["a", "ب"])}

    for _ in range(2):
        arrays = cached("kind", {"size": 1}, build)
        assert arrays["x"].tolist() == [0, 1, 2, 3, 4]
        assert arrays["names"].tolist() == ["a", "ب"]
    assert len(calls) == 1
    cached("kind", {"size": 2}, build)
    assert len(calls) == 2
    for damage in (b"", b"junk", None):
        for file in (cache_dir() / "kind").iterdir():
            file.write_bytes(file.read_bytes()[:200] if damage is None else damage)
        assert cached("kind", {"size": 1}, build)["x"].tolist() == [0, 1, 2, 3, 4]
        cached("kind", {"size": 2}, build)
    assert len(calls) == 8


def test_a_cache_that_cannot_be_written_costs_only_time(places, monkeypatch, caplog):
    monkeypatch.setenv("METARUN_CACHE", str(touch(places / "file") / "cache"))

    def fill(allocate):
        allocate((3,))[:] = 7

    with caplog.at_level("WARNING", "metarun"):
        assert cached("kind", {}, lambda: {"x": np.ones(1)})["x"] == 1
        assert mapped("kind", {}, fill).tolist() == [7, 7, 7]
        remember("kind", {}, 1)
    assert recalled("kind", {}) is None
    assert "METARUN_CACHE" in caplog.text
    with pytest.raises(UserError, match="METARUN_CACHE"):
        cache_dir()


CONTENT = bytes(range(256)) * 100


@pytest.fixture
def server():
    """The address of a server of CONTENT at /file; counts its requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        requests = 0

        def do_GET(self):
            Handler.requests += 1
            self.send_response(200 if self.path == "/file" else 404)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", Handler
        running.shutdown()


def test_download_checks_keeps_and_reports(server, capfd):
    address, handler = server
    digest = "md5:" + hashlib.md5(CONTENT).hexdigest()
    path = download(f"{address}/file", digest, "set/file.bin")
    assert path == cache_dir() / "set" / "file.bin"
    assert path.read_bytes() == CONTENT
    output = capfd.readouterr()
    assert output.out == ""
    assert "set/file.bin 0.0/0.0 MB" in output.err
    download(f"{address}/file", digest, "set/file.bin")
    assert handler.requests == 1
    path.write_bytes(b"damaged")
    assert download(f"{address}/file", digest, "set/file.bin").read_bytes() == CONTENT
    assert handler.requests == 2


def test_download_failures_are_one_line_and_leave_nothing(server):
    address, _ = server
    wrong = "md5:" + "0" * 32
    for url, words in [
        (f"{address}/file", "checksum"),
        (f"{address}/no", "404"),
        ("http://127.0.0.1:9/x", "task.root"),
    ]:
        with pytest.raises(RunFailed, match=r"^[^\n]*$") as error:
            download(url, wrong, "set/file.bin")
        assert words in str(error.value)
    assert list((cache_dir() / "set").iterdir()) == []
