"""What Triton's python backend runs, with a stand-in for the utilities that only Triton has.

Requests that share a batch of Triton's are made here: whether a real server puts two into one is
its own affair.
"""

import importlib
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from toys import coloured, encoded, export_once, random_bundle

from lspt_serve.bundle import Bundle, save_bundle
from lspt_serve.errors import DeadlineError, GraphError, LSPTError, SettingError, UnavailableError
from lspt_serve.models import Backbone

IMAGE = encoded(coloured("red", np.random.default_rng(0)))
Request = dict[str, "StandInTensor"]


@dataclass
class StandInTensor:
    name: str
    array: NDArray[Any]

    def as_numpy(self) -> NDArray[Any]:
        return self.array


class StandInError(Exception):
    INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE = (
        "INTERNAL",
        "NOT_FOUND",
        "INVALID",
        "UNAVAILABLE",
    )

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self.message, self.code = message, code


@dataclass
class StandInResponse:
    output_tensors: list[StandInTensor] | None = None
    error: StandInError | None = None

    def outcome(self) -> str:
        return self.error.code if self.error else "answered"


class StandIn(ModuleType):
    Tensor, TritonError, InferenceResponse = StandInTensor, StandInError, StandInResponse

    @staticmethod
    def get_input_tensor_by_name(request: Request, name: str) -> StandInTensor | None:
        return request.get(name)


@pytest.fixture
def model(
    tiny_backbone: Backbone,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Any]:
    """Initialised as Triton does it; `huge` is a task whose answers are not finite."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", StandIn("stand-in"))
    monkeypatch.delitem(sys.modules, "lspt_serve.triton", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a batch at a time: others wait for it
    good = random_bundle(tiny_backbone, name="good")
    save_bundle(good, tmp_path / "bundles" / "good")
    fields = good.manifest.model_dump(exclude={"name", "dtype", "tensors", "tensors_sha256"})
    tensors = good.tensors | {"head.weight": np.full_like(good.tensors["head.weight"], 3e38)}
    huge = Bundle.create(tensors, name="huge", **fields)
    save_bundle(huge, tmp_path / "bundles" / "huge")
    (tmp_path / "graph").symlink_to(export_once(tiny_backbone, tmp_path_factory))
    model = importlib.import_module("lspt_serve.triton").TritonPythonModel()
    model.initialize(model_config(tmp_path))
    yield model
    model.finalize()
    sys.modules.pop("lspt_serve.triton", None)


def model_config(folder: Path, **added: str) -> dict[str, str]:
    """What Triton hands to `initialize`."""
    given = {"graph": "graph", "bundles": "bundles", "engine": "onnxruntime", "device": "cpu"}
    parameters = {name: {"string_value": value} for name, value in (given | added).items()}
    return {
        "model_repository": str(folder),
        "model_config": json.dumps({"parameters": parameters}),
    }


def test_trusted_keys_lie_beside_the_graph(model: Any, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="needs the extra signing")
    with pytest.raises(SettingError, match=re.escape(f"{tmp_path / 'keys'}: ")):
        type(model)().initialize(model_config(tmp_path, trusted_keys="keys"))


def test_misspelt_parameter_is_refused_and_those_of_triton_are_not(
    model: Any, tmp_path: Path
) -> None:
    with pytest.raises(
        SettingError, match=r"trusted_key, in config\.pbtxt, .*nearest: trusted_keys"
    ):
        model.initialize(model_config(tmp_path, trusted_key="keys"))
    again = type(model)()
    # https://github.com/triton-inference-server/python_backend
    own = {"EXECUTION_ENV_PATH": "/env", "FORCE_CPU_ONLY_INPUT_TENSORS": "no"}
    again.initialize(model_config(tmp_path, **own, TRITON_BATCH_STRATEGY_PATH="/strategy"))
    again.finalize()


def test_request_of_more_rows_than_may_wait_is_answered(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, run = model.classifier._batcher, model.classifier._batcher._run

    def slow(images: NDArray[np.float32], bundles: list[Bundle]) -> Any:
        time.sleep(0.05)
        return run(images, bundles)

    monkeypatch.setattr(batcher, "_run", slow)
    monkeypatch.setattr(batcher, "_max_batch_size", 2)
    monkeypatch.setattr(batcher._queue, "capacity", 16)
    monkeypatch.setattr(model, "window", threading.Semaphore(model.classifier.window))
    monkeypatch.setattr(batcher, "_backlog", None)

    (answer,) = model.execute([request("good", 32)])

    assert answer.outcome() == "answered"


def request(task: str, count: int = 1) -> Request:
    columns = {"image": [[IMAGE]] * count, "task": [[task.encode()]] * count}
    return {name: StandInTensor(name, np.array(rows, object)) for name, rows in columns.items()}


@pytest.mark.filterwarnings("ignore:.*encountered in matmul:RuntimeWarning")
def test_request_that_fails_fails_none_that_shares_its_batch(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "lspt_serve"):
        answers = model.execute([request("good"), request("huge"), request("none")])

    assert [each.outcome() for each in answers] == ["answered", "INTERNAL", "NOT_FOUND"]
    assert answers[1].error.message == "an error of the server; its log has the details"
    assert "huge: not finite" in caplog.text
    assert answers[0].output_tensors[0].as_numpy().shape == (1, 3)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DeadlineError("late"), "UNAVAILABLE", "late"),
        (UnavailableError("gone"), "UNAVAILABLE", "gone"),
        (GraphError("/srv/graph is broken"), "INTERNAL", "an error of the server"),
        (LSPTError("wrong"), "INVALID", "wrong"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_have_the_codes_of_whose_fault_they_are(
    model: Any, error: Exception, code: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise error

    monkeypatch.setattr(model.classifier, "find", fail)
    (answer,) = model.execute([request("good")])

    assert answer.error.code == code
    assert answer.error.message.startswith(said)


def test_rows_of_a_batch_run_together_however_few_threads_decode(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, sizes, submitted = model.classifier._batcher, list[int](), threading.Semaphore(0)
    run, submit = batcher._run, batcher.submit

    def count(images: NDArray[np.float32], bundles: list[Bundle]) -> Any:
        sizes.append(len(images))
        for _ in range(64 if len(sizes) == 1 else 0):  # all others wait while the first runs
            assert submitted.acquire(timeout=10)
        return run(images, bundles)

    def note(*given: Any, **named: Any) -> Any:
        row = submit(*given, **named)
        submitted.release()
        return row

    monkeypatch.setattr(batcher, "_run", count)
    monkeypatch.setattr(batcher, "submit", note)
    monkeypatch.setattr(batcher, "_max_batch_size", 64)

    (answer,) = model.execute([request("good", 64)])

    assert answer.outcome() == "answered"
    assert sum(sizes) == 64
    assert len(sizes) <= 2
