"""A Triton server as an engine: it runs the shared graph as `lspt export` wrote it for Triton."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lspt_serve.errors import DeadlineError, GraphError, LSPTError, UnavailableError
from lspt_serve.feed import TaskTensors, create_feed
from lspt_serve.graph import (
    ATTENTION,
    FEATURES,
    IMAGES,
    TRITON_GRAPH,
    TRITON_PRECISION,
    TRITON_SPEC,
    GraphSpec,
    load_graph_spec,
)
from lspt_serve.reference import MAX_ERROR
from lspt_serve.runtime.engine import Precision
from lspt_serve.runtime.regions import Regions
from lspt_serve.runtime.triton_client import Place, TritonClient
from lspt_serve.sizes import USUAL_PROMPTS

__all__ = ["TRITON_URL", "TritonEngine"]

TRITON_URL = "grpc://127.0.0.1:8001"  # Triton's own default
TIMEOUT_S = 20.0  # an image is refused after 30
TASKS = "tasks"  # the region of those of a batch that mixes some
Array = NDArray[np.float32]
logger = logging.getLogger(__name__)


class TritonEngine:
    """The model `lspt-graph` of a Triton server, in fp32 but for an engine of TensorRT.

    All requests go out from a thread of its own, for an HTTP connection is its thread's.

    Args:
        folder: what `lspt export` wrote, of the backbone that the server runs.
        url: grpc://HOST:PORT or http://HOST:PORT.
        shared_memory: to a server that can open this machine's; else tensors travel in requests.
        timeout_s: for a batch.

    Raises:
        GraphError: no such graph, or the server's model is missing, broken or another's.
        UnavailableError: there is no server, or it is not ready.
        DeadlineError: it does not answer in time.
        SettingError: a url that is none.
    """

    name = "triton"
    num_prompts = USUAL_PROMPTS
    num_beside = num_batches = 1
    precision: Precision = "fp32"

    def __init__(
        self,
        folder: Path,
        *,
        url: str = TRITON_URL,
        shared_memory: bool = True,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.graph = load_graph_spec(folder)
        self.provider = url
        self._shared_memory = shared_memory
        self._timeout_s = timeout_s
        self._connection: _Connection | None = None
        self._thread = ThreadPoolExecutor(1, "triton")
        try:
            self._thread.submit(self._connect).result()
        except BaseException:
            self._thread.shutdown()
            raise

    def features(self, images: Array, tasks: Sequence[TaskTensors]) -> Array:
        return self._thread.submit(self._answer, images, tasks, FEATURES).result()

    def attention(self, images: Array, tasks: Sequence[TaskTensors]) -> Array:
        return self._thread.submit(self._answer, images, tasks, ATTENTION).result()

    def num_wanted(self) -> int:
        return self.num_batches

    def prefetch(self, tasks: Sequence[TaskTensors]) -> None:
        pass

    def close(self) -> None:
        self._thread.submit(self._disconnect).result()
        self._thread.shutdown()

    def _answer(self, images: Array, tasks: Sequence[TaskTensors], output: str) -> Array:
        """A server that was started anew knows nothing of us: what fails is tried once more."""
        if self._connection is not None:
            try:
                return self._connection.infer(images, tasks, output)
            except DeadlineError:  # it may still read our memory
                raise
            except LSPTError as error:
                logger.warning("connecting to Triton again: %s", error)
                self._disconnect()
        return self._connect().infer(images, tasks, output)

    def _connect(self) -> "_Connection":
        client = TritonClient(self.provider, timeout_s=self._timeout_s)
        try:
            _check_model(client, self.graph)
            self.precision = _read_precision(client)
            regions = _share_memory(client) if self._shared_memory else None
        except BaseException:
            client.close()
            raise
        self._connection = _Connection(client, regions, self.graph)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Connection:
    def __init__(self, client: TritonClient, regions: Regions | None, graph: GraphSpec) -> None:
        self._client = client
        self._regions = regions
        self._graph = graph

    def infer(self, images: Array, tasks: Sequence[TaskTensors], output: str) -> Array:
        feed = {IMAGES: images, **create_feed(self._graph.inputs, tasks)}
        places: dict[str, Place] = {}
        if self._regions is not None:
            places = self._regions.replace(IMAGES, {IMAGES: images})
            if tensors := {name: feed[name] for name in self._graph.inputs}:
                if all(task is tasks[0] for task in tasks):
                    places |= self._regions.keep(id(tasks[0]), tensors, holds=tasks[0])
                else:  # hardly a mixture of tasks comes twice
                    places |= self._regions.replace(TASKS, tensors)
        return self._client.infer(TRITON_GRAPH, feed, places, output)

    def close(self) -> None:
        if self._regions is not None:
            self._regions.close()
        self._client.close()


def _check_model(client: TritonClient, graph: GraphSpec) -> None:
    """Whether the server runs what the graph here says, which bundles are checked against."""
    state = client.state(TRITON_GRAPH)
    if state is None:
        raise GraphError(
            f"the Triton server at {client.url} has no model {TRITON_GRAPH!r}; write it with: "
            "lspt export --triton-repository"
        )
    word, reason = state
    if word != "READY":
        because = f": {reason}" if reason else ""
        raise UnavailableError(
            f"model {TRITON_GRAPH!r} of the Triton server at {client.url} is {word}{because}"
        )
    if client.parameter(TRITON_GRAPH, TRITON_SPEC) != graph.sha256:
        raise GraphError(
            f"the Triton server at {client.url} runs another graph than the one here, by backbone, "
            "method, pool or preprocessing; export both again"
        )


def _read_precision(client: TritonClient) -> Precision:
    word = client.parameter(TRITON_GRAPH, TRITON_PRECISION) or "fp32"
    for known in MAX_ERROR:
        if word == known:
            return known
    raise GraphError(
        f"model {TRITON_GRAPH!r} of the Triton server at {client.url} is in precision {word!r}, "
        f"wanted one of {', '.join(MAX_ERROR)}"
    )


def _share_memory(client: TritonClient) -> Regions | None:
    try:
        regions = Regions(client)
    except (GraphError, OSError) as error:
        logger.info("tensors are sent to %s, which shares no memory: %s", client.url, error)
        return None
    logger.info("%s reads tensors from shared memory", client.url)
    return regions
