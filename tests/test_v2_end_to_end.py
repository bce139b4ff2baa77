"""The unmodified tritonclient and the command line against a real server of two processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from toys import coloured, encoded, export_once, random_bundle

from lspt_serve.bundle import Bundle, save_bundle
from lspt_serve.export import create_model
from lspt_serve.models import Backbone
from lspt_serve.preprocess import preprocess_image

http = pytest.importorskip("tritonclient.http", reason="needs the extra triton")
pytestmark = pytest.mark.slow

LSPT = [sys.executable, "-c", "from lspt_serve.cli import main; main()"]
LABELS = ["blue", "green", "red"]
TOKEN = "of-the-test"
FILE = encoded(coloured("red", np.random.default_rng(0)))
CONFIG = "services:\n  lspt:\n    workers: 2\n"


@dataclass(frozen=True)
class Server:
    """A server of two processes."""

    process: "subprocess.Popen[str]"
    port: int
    bundles: dict[int, Bundle]
    log: Path

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    @contextmanager
    def clients(self) -> Iterator[list[Any]]:
        """As many as it takes until both processes have some; idle ones are closed after 5 s."""
        with ExitStack() as stack:
            clients: list[Any] = []
            end = time.monotonic() + 60
            while len(processes_with_connections(self.process.pid, self.port)) < 2:
                assert time.monotonic() < end, "all connections go to one process"
                clients.append(stack.enter_context(http.InferenceServerClient(self.url)))
                for client in clients:
                    client.get_server_metadata()
            yield clients
            assert len(processes_with_connections(self.process.pid, self.port)) == 2

    def soon(self, holds: Callable[[Any], bool]) -> None:
        """Every process comes to it, within the second in which it looks at the folder."""
        end = time.monotonic() + 20
        while True:
            with self.clients() as clients:
                if all(holds(client) for client in clients):
                    return
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def run(self, *words: str, token: str = TOKEN) -> "subprocess.CompletedProcess[str]":
        """The lspt command."""
        environment = {**os.environ, "LSPT_ADMIN_TOKEN": token}
        return subprocess.run(
            [*LSPT, *words, "--url", f"http://{self.url}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def processes_with_connections(parent: int, port: int) -> set[int]:
    """Of a parent's, those that hold an established connection at the port, from /proc."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"}
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) != parent:
                continue
            links = {str(link.readlink()) for link in (folder / "fd").iterdir()}
        except OSError:  # it ended meanwhile
            continue
        if links & {f"socket:[{inode}]" for inode in inodes}:
            found.add(int(folder.name))
    return found


def wait_until_ready(url: str, process: "subprocess.Popen[str]", log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        if log.read_text().count("Service lspt initialized") == 2:
            with http.InferenceServerClient(url) as client, suppress(ConnectionError):
                if client.is_server_ready():
                    return
        time.sleep(0.2)
    pytest.fail(f"not ready after 120 s: {log.read_text()}")


@pytest.fixture(scope="module")
def server(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("work"), free_port()
    bundles = {}
    for version in (1, 2):
        bundle = random_bundle(tiny_backbone, name="colour", labels=LABELS, seed=version)
        manifest = bundle.manifest.model_copy(update={"version": version})
        bundles[version] = Bundle(manifest, bundle.tensors)
        save_bundle(bundles[version], folder / "bundles" / f"colour-{version}")
    (folder / "bentoml.yaml").write_text(CONFIG)
    log, url = folder / "server.log", f"127.0.0.1:{port}"
    words = ["--graph", export_once(tiny_backbone, tmp_path_factory), "--port", port]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*LSPT, "serve", *map(str, words), "--device", "cpu", "--engine", "onnxruntime"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "BENTOML_CONFIG": str(folder / "bentoml.yaml"),
                "BENTOML_HOME": str(folder / "bentoml"),
                "LSPT_ADMIN_TOKEN": TOKEN,
            },
            start_new_session=True,
        )
    try:
        wait_until_ready(url, process, log)
        yield Server(process, port, bundles, log)
    finally:
        end(process)


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    """Of either process."""
    with http.InferenceServerClient(server.url) as client:
        yield client


def end(process: "subprocess.Popen[str]") -> None:
    """End the server and the processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


def image(count: int = 1) -> Any:
    array = np.array([FILE] * count, dtype=np.object_)
    return http.InferInput("IMAGE", [count], "BYTES").set_data_from_numpy(array)


def states(client: Any) -> set[str]:
    """Of the models; unlike is_model_ready the client reads it whole and keeps its connection."""
    return {row["state"] for row in client.get_model_repository_index()}


def admin() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}


def scores_of_torch(backbone: Backbone, bundle: Bundle) -> Any:
    """Of FILE, 1 x K."""
    pixels = preprocess_image(FILE, backbone.preprocess)[None]
    with torch.inference_mode():
        return np.asarray(create_model(backbone, bundle)(torch.from_numpy(pixels)).softmax(dim=-1))


def test_without_a_host_it_listens_for_this_machine_alone(server: Server) -> None:
    parent = psutil.Process(server.process.pid)
    listening = {
        connection.laddr
        for process in (parent, *parent.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }

    assert ("127.0.0.1", server.port) in listening
    assert {address.ip for address in listening} == {"127.0.0.1"}


@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
@pytest.mark.parametrize("version", ["1", "2"])
def test_every_process_answers_as_torch_does(
    server: Server, tiny_backbone: Backbone, version: str, packed: str | None
) -> None:
    pixels = preprocess_image(FILE, tiny_backbone.preprocess)[None]
    wanted = scores_of_torch(tiny_backbone, server.bundles[int(version)])
    raw = http.InferInput("PIXELS", [*pixels.shape], "FP32").set_data_from_numpy(pixels)

    with server.clients() as clients:
        for client in clients:
            for tensor in (image(), raw):
                answer = client.infer(
                    "colour",
                    [tensor],
                    model_version=version,
                    request_compression_algorithm=packed,
                    response_compression_algorithm=packed,
                )
                np.testing.assert_allclose(answer.as_numpy("SCORES"), wanted, atol=1e-5)
                assert answer.get_response()["model_version"] == version
        asked = [http.InferRequestedOutput("SCORES", class_count=1)]
        ((best,),) = client.infer("colour", [image()], version, outputs=asked).as_numpy("SCORES")
    assert best.decode().split(":")[1:] == [str(wanted.argmax()), LABELS[wanted.argmax()]]


def test_client_learns_what_there_is(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("colour")
    assert client.is_model_ready("colour", "2")
    assert not client.is_model_ready("colour", "3")
    assert client.get_server_metadata()["name"] == "lspt-serve"
    assert client.get_model_metadata("colour")["versions"] == ["1", "2"]
    assert client.get_model_config("colour", "1")["output"][0]["dims"] == [-1, 3]
    rows = client.get_model_repository_index()
    assert [(row["version"], row["state"]) for row in rows] == [("1", "READY"), ("2", "READY")]


def test_folder_of_bundles_that_changes_reaches_every_process(
    server: Server, tiny_backbone: Backbone
) -> None:
    folder = server.log.parent / "bundles" / "shape"

    def names(client: Any) -> set[str]:
        return {row["name"] for row in client.get_model_repository_index()}

    def is_served(client: Any, wanted: Any) -> bool:
        if "shape" not in names(client):
            return False
        scores = client.infer("shape", [image()]).as_numpy("SCORES")
        return np.allclose(scores, wanted, rtol=0, atol=1e-5)

    for seed in (3, 4):  # dropped in, then replaced
        bundle = random_bundle(tiny_backbone, name="shape", labels=LABELS, seed=seed)
        save_bundle(bundle, folder)
        server.soon(partial(is_served, wanted=scores_of_torch(tiny_backbone, bundle)))

    shutil.rmtree(folder)
    server.soon(lambda client: names(client) == {"colour"})
    with server.clients() as clients:
        for client in clients:
            with pytest.raises(Exception, match=r"404.*unknown task 'shape'"):
                client.infer("shape", [image()])


def test_unload_and_load_reach_every_process(server: Server, client: Any) -> None:
    for headers in (None, {"Authorization": "Bearer wrong"}):
        with pytest.raises(Exception, match="401"):
            client.unload_model("colour", headers=headers)

    client.unload_model("colour", headers=admin())
    server.soon(lambda client: states(client) == {"UNAVAILABLE"})
    assert not client.is_model_ready("colour")
    with pytest.raises(Exception, match=r"404.*unloaded"):
        client.infer("colour", [image()])

    client.load_model("colour", headers=admin())
    server.soon(lambda client: states(client) == {"READY"})
    with pytest.raises(Exception, match="400"):
        client.load_model("colour", headers=admin(), config="{}", files={"file:1/a": b"x"})


def test_commands_reach_every_process(server: Server) -> None:
    def version(client: Any) -> str:
        return str(client.infer("colour", [image()]).get_response()["model_version"])

    said = server.run("alias", "colour:default", "1", "--json")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout) == {"task": "colour", "alias": "default", "version": 1}
    server.soon(lambda client: version(client) == "1")

    assert server.run("alias", "colour:default", "--delete").returncode == 0
    server.soon(lambda client: version(client) == "2")

    assert server.run("unload", "colour").stdout == "colour is unloaded\n"
    server.soon(lambda client: states(client) == {"UNAVAILABLE"})
    assert server.run("load", "colour").stdout == "colour is served\n"
    server.soon(lambda client: states(client) == {"READY"})


def test_load_tells_what_is_not_served(server: Server) -> None:
    folder = server.log.parent / "bundles" / "broken"
    folder.mkdir()
    (folder / "bundle.json").write_text("{")
    try:
        said, as_json = server.run("load", "colour"), server.run("load", "colour", "--json")
        broken = server.run("load", "broken")
    finally:
        shutil.rmtree(folder)

    assert said.stdout == "colour is served\n"
    assert " ".join(said.stderr.split()).startswith(
        "note: broken is not served: broken/bundle.json: not JSON"
    )
    assert json.loads(as_json.stdout)["refused"].keys() == {"broken"}
    assert (broken.returncode, broken.stdout) == (2, "")
    assert "task 'broken' is not served: broken/bundle.json: not JSON" in broken.stderr


def test_path_with_a_slash_too_many_leads_nowhere(server: Server) -> None:
    answer = httpx.get(f"http://{server.url}/tasks/", headers={"Host": "evil.example"}, timeout=20)

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"
    assert "Location" not in answer.headers


@pytest.mark.parametrize(
    ("words", "token", "wanted"),
    [
        (["unload", "color"], TOKEN, "unknown task 'color'; nearest: colour"),
        (["alias", "colour:stable", "7"], TOKEN, "unknown version 'colour@7'"),
        (["load", "colour"], "wrong", "LSPT_ADMIN_TOKEN is not the server's token"),
    ],
)
def test_command_that_the_server_refuses_says_so_in_one_line(
    server: Server, words: list[str], token: str, wanted: str
) -> None:
    ended = server.run(*words, token=token)

    assert ended.returncode == 2
    assert ended.stdout == ""
    assert wanted in ended.stderr
    assert ended.stderr.count("\n") == 1
