"""Backbones by their timm name, from a hub of this machine's own (a mock: there is no network)."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from os import environ
from pathlib import Path
from threading import Thread

import pytest
import timm
import torch
from safetensors.torch import save_file

from lspt_serve.models import load_backbone

NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
COMMIT = "0123456789" * 4
PROGRAM = """
import json, sys
from lspt_serve.errors import BackboneError
from lspt_serve.models import load_backbone
try:
    backbone = load_backbone(sys.argv[1], img_size=32)
    print(json.dumps([backbone.sha256, backbone.preprocess.mean, backbone.pool]))
except BackboneError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, as the hub keeps those of this model."""
    torch.manual_seed(0)
    vit = timm.create_model(NAME, pretrained=False)
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    save_file(vit.state_dict(), path)
    return path


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[str]:
    """The part of the hub's protocol that a download takes: files by their path."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            data = files.get(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.send_header("ETag", '"1"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body and data is not None:
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def load_from(endpoint: str, home: Path, **more: str) -> object:
    """In a process of its own: the hub's address is read once, at the first import."""
    env = {**environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **more}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, NAME],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(ended.stdout)


def test_a_backbone_is_downloaded_by_its_name_once(tmp_path: Path, weights: Path) -> None:
    path = f"/timm/{NAME}/resolve/main/model.safetensors"
    with serve({path: weights.read_bytes()}) as endpoint:
        downloaded = load_from(endpoint, tmp_path)
    kept = load_from(endpoint, tmp_path, HF_HUB_OFFLINE="1")  # from the cache: the hub is gone

    own = load_backbone(str(weights), normalisation="half")
    assert downloaded == kept == [own.sha256, list(own.preprocess.mean), own.pool]


def test_a_hub_that_has_no_such_file_is_one_line(tmp_path: Path) -> None:
    with serve({}) as endpoint:
        message = load_from(endpoint, tmp_path)

    assert isinstance(message, str)
    assert message.startswith(f"{NAME}: pretrained weights cannot be had (")
    assert message.endswith("); give a local file instead")
    assert "\n" not in message
