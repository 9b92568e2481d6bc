"""A loopback stand-in of the W&B server, enough of its protocol for one client: runs are created and resumed,
history, summary and exit code stream in, files are uploaded.

History is kept as the real server keeps it: lines at offsets, so a client that sends lines twice to the same
offset overwrites them, and one that appends them twice doubles them.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "k" * 40  # the only one that is let in
PROJECT = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}


@dataclass
class ServedRun:
    """What the server knows of one run."""

    name: str
    attributes: dict[str, Any] = field(default_factory=dict)  # the last UpsertBucket's variables
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)  # offset -> history row
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        return [self.lines[offset] for offset in sorted(self.lines)]


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is nothing to print."""


class WandbServer:
    """Serves on ``url``, within a ``with`` or until :meth:`stop`; ``runs`` is what arrived."""

    def __init__(self) -> None:
        self.runs: dict[str, ServedRun] = {}
        self.refuse_stream: int | None = None  # an HTTP status to answer every history upload with
        self.lock = threading.Lock()
        self.authorization = "Basic " + base64.b64encode(f"api:{API_KEY}".encode()).decode()
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def body(self) -> bytes:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

            def answer(self, payload: Any, status: int = 200) -> None:
                raw = json.dumps(payload).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def do_GET(self) -> None:
                self.answer({})

            def do_PUT(self) -> None:
                _, _, run, name = self.path.split("/", 3)  # /upload/<run>/<file name>
                with served.lock:
                    served.run(run).files[name] = self.body()
                self.answer({})

            def do_POST(self) -> None:
                body = self.body()
                if self.path == "/graphql":
                    if self.headers["Authorization"] != served.authorization:
                        self.answer({"error": "user is not logged in"}, 401)
                        return
                    request = json.loads(body)
                    with served.lock:
                        data = served.graphql(request["query"], request.get("variables") or {})
                    self.answer({"data": data})
                elif match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                    if served.refuse_stream is not None:
                        self.answer({"error": "refused"}, served.refuse_stream)
                        return
                    with served.lock:
                        served.stream(match[1], json.loads(body))
                    self.answer({"exitcode": None, "limits": {}})
                else:
                    self.answer({})  # telemetry

        self._http = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> WandbServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse every further connection; what arrived stays readable."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()

    def run(self, name: str) -> ServedRun:
        return self.runs.setdefault(name, ServedRun(name))

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "RunResumeStatus" in query or "RunStatus" in query:
            run = self.runs.get(variables.get("name") or "")
            return {"model": PROJECT | {"bucket": run and bucket(run)}}
        if "upsertBucket" in query:
            run = self.run(variables["name"])
            inserted = not run.attributes
            run.attributes |= {k: v for k, v in variables.items() if v is not None}
            if variables.get("config"):
                run.config = {k: v.get("value") for k, v in json.loads(variables["config"]).items()}
            return {"upsertBucket": {"bucket": bucket(run), "inserted": inserted}}
        if "createArtifact(" in query:  # as if these files were there already
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s"}}}}
        if "createRunFiles" in query:
            run = variables["run"]
            files = [{"name": f, "uploadUrl": f"{self.url}/upload/{run}/{f}"} for f in variables["files"]]
            return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}
        return {}

    def stream(self, name: str, message: dict[str, Any]) -> None:
        run = self.run(name)
        for file, chunk in (message.get("files") or {}).items():
            if file == "wandb-history.jsonl":
                for i, line in enumerate(chunk["content"]):
                    run.lines[chunk["offset"] + i] = json.loads(line)
            elif file == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        if message.get("complete"):
            run.exit_code = message.get("exitcode")


def bucket(run: ServedRun) -> dict[str, Any]:
    """A run as the GraphQL answers hold it, with what a resuming client asks for."""
    return {
        "id": run.name,
        "name": run.name,
        "displayName": run.attributes.get("displayName") or run.name,
        "description": "",
        "sweepName": None,
        "state": "running",
        "createdAt": "2024-01-01T00:00:00",
        "historyLineCount": len(run.lines),
        "eventsLineCount": 0,
        "logLineCount": 0,
        # Both are JSON within JSON: the tail is a list of encoded rows.
        "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
        "eventsTail": "[]",
        "summaryMetrics": json.dumps(run.summary),
        "config": json.dumps({k: {"value": v} for k, v in run.config.items()}),
        "tags": run.attributes.get("tags") or [],
        "wandbConfig": '{"t": 1}',
        "project": PROJECT,
    }
