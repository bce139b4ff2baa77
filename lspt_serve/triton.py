"""Triton's python backend: the classifier of the service, and the graph alone, as Triton's models.

`lspt export --triton-repository` writes a model.py that imports one of them. Only Triton's own
processes can, for they have the utilities of its backend. Inputs and outputs are in config.pbtxt.
"""

import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Semaphore
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from lspt_serve.bundle import Bundle
from lspt_serve.cores import core_limit
from lspt_serve.errors import (
    DeadlineError,
    GraphError,
    LSPTError,
    OverloadedError,
    SettingError,
    UnavailableError,
    UnknownTaskError,
    first_line,
    nearest,
)
from lspt_serve.runtime import OnnxEngine, Watch, activate, top_labels
from lspt_serve.settings import ServiceSettings, load_classifier

__all__ = ["GraphModel", "TritonPythonModel"]

TOP_K = 5
PATHS = {"graph", "bundles", "trusted_keys"}
FAILED = "an error of the server; its log has the details"
logger = logging.getLogger(__name__)
Answer = tuple[Bundle, Future[NDArray[np.float32]]]  # logits (K)


class TritonPythonModel:
    """Rows of `image` (the bytes of a file) and `task` to `label` and `score`, best first.

    Rows of all requests that Triton's dynamic batching hands over share the batches of one engine.
    A request is refused as a whole, with the reason, if one of its rows is.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load graph and bundles; paths among config.pbtxt's parameters are relative to its folder.

        Raises SettingError, GraphError or BundleError. The environment does not count.
        """
        folder = Path(args["model_repository"])
        fields = ServiceSettings.model_fields
        given = {}
        for name, value in json.loads(args["model_config"])["parameters"].items():
            if name in fields:
                given[name] = value["string_value"]
            elif known := nearest(name.lower(), fields):  # Triton has parameters of its own
                raise SettingError(f"{name}, in config.pbtxt, is no setting{known}")
        for name in PATHS & given.keys():
            given[name] = str(folder / given[name])
        settings = ServiceSettings.from_words(given, {name: name for name in given})
        self.classifier = load_classifier(settings)
        self.watch = Watch(self.classifier.store)
        self.decoders = ThreadPoolExecutor(thread_name_prefix="decode")
        self.window = Semaphore(self.classifier.window)  # a batch of Triton's may be longer

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests; their rows are decoded at once and run together."""
        rows = [list(map(self._submit, *_rows(request))) for request in requests]
        return [_respond(request, own) for request, own in zip(requests, rows, strict=True)]

    def finalize(self) -> None:
        """Answer what waits and stop."""
        self.watch.close()
        self.decoders.shutdown()
        self.classifier.close()

    def _submit(self, image: bytes, task: bytes) -> "Future[Answer]":
        return self.decoders.submit(self._answer, image, task.decode("utf-8", "replace"))

    def _answer(self, image: bytes, task: str) -> Answer:
        self.window.acquire()
        try:
            bundle = self.classifier.find(task)
            with self.classifier.place(bundle):
                with self.classifier.telling(bundle.manifest):
                    pixels = self.classifier.decode(image, bundle)
                answer = self.classifier.submit(pixels, bundle)
        except BaseException:
            self.window.release()
            raise
        answer.add_done_callback(lambda _: self.window.release())
        return bundle, answer


class GraphModel:
    """The shared graph by ONNX Runtime, for a Triton that lacks the onnxruntime backend.

    It takes and gives what the graph itself does, and each request is a batch of its own.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """The graph lies beside model.py."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self.engine = OnnxEngine(folder, num_threads=core_limit() or 0, num_beside=1)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        feed = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        try:
            tensors = [
                pb_utils.Tensor(name, self.engine.run(feed, name))
                for name in request.requested_output_names()
            ]
        except Exception as error:  # ONNX Runtime has no common base for what it raises
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(first_line(error)))
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _rows(request: Any) -> tuple[list[bytes], list[bytes]]:
    images, tasks = (
        pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel().tolist()
        for name in ("image", "task")
    )
    return images, tasks


def _code(error: Exception) -> Any:
    """Triton's codes, which HTTP has as 404, 503, 500 and 400."""
    if isinstance(error, UnknownTaskError):
        return pb_utils.TritonError.NOT_FOUND
    if isinstance(error, (DeadlineError, OverloadedError, UnavailableError)):
        return pb_utils.TritonError.UNAVAILABLE
    if isinstance(error, GraphError) or not isinstance(error, LSPTError):
        return pb_utils.TritonError.INTERNAL
    return pb_utils.TritonError.INVALID_ARG


def _respond(request: Any, rows: "list[Future[Answer]]") -> Any:
    """One that fails fails alone: Triton handed over requests of several callers at once."""
    try:
        return _collect(request, rows)
    except Exception as error:
        code, message = _code(error), str(error)
        if code == pb_utils.TritonError.INTERNAL:
            logger.error("a request failed", exc_info=error)
            message = FAILED
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _collect(request: Any, rows: "list[Future[Answer]]") -> Any:
    submitted = [row.result() for row in rows]
    answers = [(bundle, activate(logits.result())) for bundle, logits in submitted]
    given = pb_utils.get_input_tensor_by_name(request, "top_k")
    k = TOP_K if given is None else max(1, int(given.as_numpy().max()))
    best = [top_labels(own, bundle.labels, k) for bundle, own in answers]
    shape = len(best), max(map(len, best))
    labels, scores = np.full(shape, b"", object), np.zeros(shape, np.float32)
    for row, predictions in enumerate(best):
        labels[row, : len(predictions)] = [p.label.encode() for p in predictions]
        scores[row, : len(predictions)] = [p.score for p in predictions]
    tensors = [pb_utils.Tensor("label", labels), pb_utils.Tensor("score", scores)]
    return pb_utils.InferenceResponse(output_tensors=tensors)
