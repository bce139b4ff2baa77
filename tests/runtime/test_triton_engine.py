"""The graph in a real tritonserver, over gRPC and HTTP, with and without shared memory."""

import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import tritonclient.grpc
from toys import export_once, noise, random_bundle
from toys_triton import TritonServer, free_port, needs_triton

import lspt_serve.runtime.regions
from lspt_serve.bundle import Bundle, save_bundle
from lspt_serve.errors import DeadlineError, GraphError, SettingError, UnavailableError
from lspt_serve.export.triton import export_to_triton
from lspt_serve.graph import TRITON_GRAPH, TRITON_MODEL
from lspt_serve.models import Backbone
from lspt_serve.reference import Reference
from lspt_serve.runtime import Classifier, OnnxEngine, PromptStore, TritonEngine, choose_engine
from lspt_serve.runtime.gate import check_engine
from lspt_serve.runtime.regions import Regions
from lspt_serve.runtime.triton_client import TritonClient

SCHEMES = ("grpc", "http")
slow_with_triton = [needs_triton, pytest.mark.slow]
Connect = Callable[..., TritonEngine]


@pytest.fixture(scope="module")
def repository(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    export_to_triton(tiny_backbone, folder, backend="python")
    return folder


@pytest.fixture(scope="module")
def graph(repository: Path) -> Path:
    return repository / TRITON_MODEL / "graph"


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(repository / TRITON_GRAPH, folder / "models" / TRITON_GRAPH)
    server = TritonServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(params=SCHEMES)
def url(request: pytest.FixtureRequest, server: TritonServer) -> str:
    return f"{request.param}://127.0.0.1:{server.ports[request.param]}"


@pytest.fixture
def connect(graph: Path, url: str) -> Iterator[Connect]:
    """Engines that are closed in the end."""
    opened: list[TritonEngine] = []

    def connect(**options: Any) -> TritonEngine:
        opened.append(TritonEngine(graph, url=url, **options))
        return opened[-1]

    yield connect
    for engine in opened:
        engine.close()


@pytest.fixture(scope="module")
def bundles(tiny_backbone: Backbone) -> list[Bundle]:
    return [
        random_bundle(tiny_backbone, name=name, num_prompts=num_prompts, seed=num_prompts)
        for name, num_prompts in (("ants", 2), ("bees", 3), ("cats", 5))
    ]


def regions_of(server: TritonServer) -> dict[str, int]:
    """Name and size of all the shared memory that the server has open."""
    with closing(tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.ports['grpc']}")) as c:
        status = c.get_system_shared_memory_status(as_json=True)
    return {name: int(each["byte_size"]) for name, each in status.get("regions", {}).items()}


def overwrite(name: str) -> None:
    memory = SharedMemory(name)
    assert memory.buf is not None
    memory.buf[:] = bytes(memory.size)
    memory.close()


def check_answers(engine: TritonEngine, graph: Path, bundles: list[Bundle], whose: str) -> None:
    """Rows of tasks by their first letters: those of the same graph here, within 1e-5."""
    by_letter = {bundle.name[0]: bundle.method_tensors for bundle in bundles}
    tasks = [by_letter[letter] for letter in whose]
    images = noise(len(tasks), seed=len(tasks))
    wanted = OnnxEngine(graph, device="cpu").features(images, tasks)

    got = engine.features(images, tasks)

    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


class TestWithServer:
    pytestmark = slow_with_triton

    @pytest.mark.parametrize("shared_memory", [True, False])
    def test_answers_are_those_of_the_local_engine(
        self, connect: Connect, graph: Path, bundles: list[Bundle], shared_memory: bool
    ) -> None:
        engine = connect(shared_memory=shared_memory)

        assert check_engine(engine, Reference.load(graph)).max_error < 1e-5  # against torch
        for whose in ("a", "b", "abc", "cba", "a", "bcbcaabc", "abc", "aaaaa"):
            check_answers(engine, graph, bundles, whose)

    def test_server_reads_tasks_from_memory_that_stays(
        self, connect: Connect, server: TritonServer, bundles: list[Bundle]
    ) -> None:
        engine, tasks = connect(), [bundles[0].method_tensors]
        first = engine.features(noise(1), tasks)
        opened = regions_of(server)
        assert len(opened) == 2  # images, and this task

        np.testing.assert_array_equal(engine.features(noise(1), tasks), first)
        assert regions_of(server) == opened
        for name in opened:  # of them only the images are written anew
            overwrite(name)
        assert np.abs(engine.features(noise(1), tasks) - first).max() > 1e-2

    def test_closed_engine_leaves_nothing(
        self, connect: Connect, server: TritonServer, bundles: list[Bundle], graph: Path, url: str
    ) -> None:
        engine = TritonEngine(graph, url=url)
        check_answers(engine, graph, bundles, "abca")
        opened = regions_of(server)
        assert opened

        engine.close()

        assert regions_of(server) == {}
        assert not [name for name in opened if Path("/dev/shm", name).exists()]

    def test_without_shared_memory_the_server_opens_none(
        self, connect: Connect, server: TritonServer, bundles: list[Bundle], graph: Path
    ) -> None:
        check_answers(connect(shared_memory=False), graph, bundles, "ab")

        assert regions_of(server) == {}

    def test_server_that_cannot_open_our_memory_is_sent_the_tensors(
        self,
        connect: Connect,
        graph: Path,
        bundles: list[Bundle],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        register = TritonClient.register

        def elsewhere(client: TritonClient, name: str, key: str, num_bytes: int) -> None:
            register(client, name, f"{key}-of-another-machine", num_bytes)

        monkeypatch.setattr(TritonClient, "register", elsewhere)
        with caplog.at_level(logging.INFO, "lspt_serve"):
            engine = connect()

        assert "which shares no memory" in caplog.text
        check_answers(engine, graph, bundles, "abc")

    def test_memory_that_is_full_is_no_failure(
        self,
        connect: Connect,
        graph: Path,
        bundles: list[Bundle],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        engine = connect()

        def full(handle: int, offset: int, size: int) -> NoReturn:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)

        check_answers(engine, graph, bundles, "abc")
        assert "bytes of shared memory: " in caplog.text

    def test_regions_used_longest_ago_make_room(self, server: TritonServer, url: str) -> None:
        client = TritonClient(url, timeout_s=5)
        regions = Regions(client, max_bytes=300)
        arrays = {name: {"x": np.full(25, ord(name), np.float32)} for name in "abc"}  # 128 bytes

        for name in "abac":
            regions.keep(name, arrays[name], holds=None)

        assert regions.num_bytes == 256
        assert [*regions_of(server).values()] == [128, 128]
        before = regions.keep("a", arrays["a"], holds=None)
        assert regions.keep("a", arrays["a"], holds=None) == before
        assert regions.keep("b", arrays["b"], holds=None) != before
        regions.close()
        client.close()
        assert regions_of(server) == {}

    def test_regions_are_no_more_than_may_be_open(
        self, server: TritonServer, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lspt_serve.runtime.regions, "MAX_REGIONS", 2)
        client = TritonClient(url, timeout_s=5)
        regions = Regions(client)

        for name in "abcd":
            assert regions.keep(name, {"x": np.zeros(25, np.float32)}, holds=None)

        assert len(regions_of(server)) == 2
        regions.close()
        client.close()

    @pytest.mark.parametrize("room", [0, 50_000, 70_000, 100_000])
    def test_tasks_never_drive_out_the_images_of_their_request(
        self, connect: Connect, graph: Path, bundles: list[Bundle], room: int
    ) -> None:
        engine = connect()
        connection = engine._connection
        assert connection is not None
        assert connection._regions is not None
        connection._regions.max_bytes = room

        for whose in ("aaaa", "bbbb", "abca", "c", "cbac", "a"):
            check_answers(engine, graph, bundles, whose)
            assert connection._regions.num_bytes <= room

        assert engine._connection is connection  # which a request that fails would have ended

    def test_all_mixtures_of_tasks_have_one_region(
        self, connect: Connect, server: TritonServer, graph: Path, bundles: list[Bundle]
    ) -> None:
        engine = connect()

        for whose in ("abc", "cba", "ab", "bac", "cab"):
            check_answers(engine, graph, bundles, whose)

        assert len(regions_of(server)) == 2  # images, and tasks

    def test_server_that_hangs_is_told_of_one_region_in_vain(
        self, server: TritonServer, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unregister, told = TritonClient.unregister, list[str]()

        def count(client: TritonClient, name: str) -> None:
            told.append(name)
            unregister(client, name)

        client = TritonClient(url, timeout_s=1)
        regions = Regions(client)
        for name in "abcd":
            regions.keep(name, {"x": np.zeros(25, np.float32)}, holds=None)
        names = {*regions_of(server)}
        monkeypatch.setattr(TritonClient, "unregister", count)
        server.send(signal.SIGSTOP)
        try:
            regions.close()
        finally:
            server.send(signal.SIGCONT)
        client.close()

        assert len(told) == 1
        assert not [name for name in names if Path("/dev/shm", name).exists()]
        with closing(
            tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.ports['grpc']}")
        ) as c:
            c.unregister_system_shared_memory()

    def test_graph_that_is_another_is_refused(
        self, tiny_backbone: Backbone, url: str, tmp_path: Path
    ) -> None:
        from lspt_serve.export import export_graph

        pooled = random_bundle(tiny_backbone, pool="patch_mean")  # else it is the same
        export_graph(tiny_backbone, tmp_path / "graph", like=pooled)

        with pytest.raises(GraphError, match="runs another graph than the one here, by backbone"):
            TritonEngine(tmp_path / "graph", url=url)

    def test_model_that_is_not_loaded_is_refused(
        self, server: TritonServer, graph: Path, url: str
    ) -> None:
        with closing(
            tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.ports['grpc']}")
        ) as c:
            c.unload_model(TRITON_GRAPH)
            try:
                while c.is_model_ready(TRITON_GRAPH):
                    time.sleep(0.05)
                with pytest.raises(
                    UnavailableError, match=f"'lspt-graph' of the .* at {url} is UN[A-Z]+"
                ):
                    TritonEngine(graph, url=url)
            finally:
                c.load_model(TRITON_GRAPH)

    def test_server_that_hangs_is_given_up_in_time_and_taken_up_again(
        self, connect: Connect, server: TritonServer, graph: Path, bundles: list[Bundle]
    ) -> None:
        engine = connect(timeout_s=5)
        check_answers(engine, graph, bundles, "ab")
        server.send(signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(DeadlineError, match="the Triton server did not answer in 5 s"):
                engine.features(noise(1), [bundles[0].method_tensors])
            assert time.monotonic() - started < 10
        finally:
            server.send(signal.SIGCONT)

        check_answers(engine, graph, bundles, "ba")

    def test_server_that_died_fails_rows_until_it_is_back(
        self, connect: Connect, server: TritonServer, graph: Path, bundles: list[Bundle], url: str
    ) -> None:
        engine = connect()
        check_answers(engine, graph, bundles, "abc")

        server.kill()
        try:
            for _ in range(2):
                with pytest.raises(UnavailableError, match=f"no Triton server answers at {url}: "):
                    engine.features(noise(1), [bundles[0].method_tensors])
        finally:
            server.start()

        check_answers(engine, graph, bundles, "abc")
        server.kill()
        server.start()
        check_answers(engine, graph, bundles, "abc")  # nobody was told of the restart

    def test_classifier_goes_on_when_the_server_is_back(
        self, graph: Path, server: TritonServer, bundles: list[Bundle], url: str, tmp_path: Path
    ) -> None:
        for bundle in bundles:
            save_bundle(bundle, tmp_path / bundle.name)
        engine = choose_engine(graph, names=["triton"], triton_url=url)
        classifier = Classifier(engine, PromptStore(tmp_path, engine.graph))
        images, tasks = noise(9), [classifier.store[name] for name in ("ants", "bees", "cats")] * 3

        def ask() -> list[Any]:
            rows = [classifier.submit(*each) for each in zip(images, tasks, strict=True)]
            return [row.exception(timeout=30) or row.result() for row in rows]

        before = ask()
        server.kill()
        try:
            assert {type(each) for each in ask()} == {UnavailableError}
        finally:
            server.start()
        np.testing.assert_allclose(ask(), before, atol=1e-5)
        classifier.close()
        assert regions_of(server) == {}


@pytest.fixture
def local_graph(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_once(tiny_backbone, tmp_path_factory)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nobody_at_the_address_is_one_line(local_graph: Path, scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:{free_port()}"

    with pytest.raises(UnavailableError, match=f"^no Triton server answers at {url}: .") as caught:
        TritonEngine(local_graph, url=url)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_address_that_never_answers_is_given_up_in_time(local_graph: Path, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(DeadlineError, match=r"did not answer in 0\.5 s"):
            TritonEngine(local_graph, url=url, timeout_s=0.5)

    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "url", ["", "localhost", "localhost:", ":8001", "ftp://localhost:1", "://h:1", "grpc://h:x"]
)
def test_url_that_is_none_is_refused(local_graph: Path, url: str) -> None:
    with pytest.raises(SettingError, match=f"Triton's url is '{url}'; wanted grpc://HOST:PORT or"):
        TritonEngine(local_graph, url=url)


def test_url_without_a_scheme_is_grpc(local_graph: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(UnavailableError, match=f"answers at {address}: .*ipv4:{address}"):
        TritonEngine(local_graph, url=address)


def test_without_tritonclient_is_told_how_to_get_it(
    local_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)

    with pytest.raises(GraphError, match=r"pip install '\.\[triton\]'"):
        TritonEngine(local_graph)


@pytest.mark.parametrize("given", [{"precision": "bf16"}, {"device": "cuda"}, {"device": "cpu"}])
def test_what_the_server_decides_cannot_be_asked_for(
    local_graph: Path, given: dict[str, Any]
) -> None:
    with pytest.raises(GraphError, match="Triton runs the graph as and where its server does"):
        choose_engine(local_graph, names=["triton"], **given)
