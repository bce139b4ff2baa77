"""What the tests of the proofs share: answers, a server that is a toy, and runs of the scripts."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from proof_scene import with_hook
from proof_tasks import Answers
from proof_traffic import Seen

Respond = Callable[[str, bytes], tuple[int, dict[str, str], bytes]]


@contextmanager
def toy_server(respond: Respond) -> Iterator[int]:
    """Answers each request with status, headers and body; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, answer = respond(self.path, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Transfer-Encoding" not in headers:
                self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def to_body(task: str, version: int, logits: Any) -> bytes:
    """As the service answers, best first."""
    order = np.argsort(-np.array(logits))
    predictions = [{"label": f"l{i}", "score": float(logits[i]), "index": int(i)} for i in order]
    return json.dumps({"task": task, "version": version, "predictions": predictions}).encode()


def seen(
    task: str, body: bytes, *, sent: float = 10.0, received: float = 10.1, status: int = 200
) -> Seen:
    return Seen(0, task, sent, sent, received, status, body)


ANSWERS: Answers = {
    (0, "a", 1): np.array([1, 2], np.float32),
    (0, "a", 2): np.array([3, 1], np.float32),
    (0, "b", 1): np.array([5, 7], np.float32),
}


def run_hooked(folder: Path, hook: str, code: str) -> str:
    """What another Python prints that began with the hook."""
    variables = {"PATH": "/usr/bin:/bin", **with_hook(folder, hook)}
    return subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    ).stdout


def run_quick(script: Any, folder: Path, *words: object) -> dict[str, Any]:
    """A quick run against a real server; the records of its page."""
    script.main(["--quick", "--docs", str(folder), *map(str, words)])
    records: list[dict[str, Any]] = json.loads((folder / "reliability.json").read_text())
    return {record["name"]: record for record in records}
