"""One connection to a Triton server, over gRPC or HTTP. Every wait has an end."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspt_serve.errors import (
    DeadlineError,
    GraphError,
    LSPTError,
    SettingError,
    UnavailableError,
    first_line,
)

__all__ = ["Array", "Place", "TritonClient"]

SCHEMES = ("grpc", "http")
LOST, LATE = "StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"  # gRPC's words
Array = NDArray[np.float32] | NDArray[np.int64]
Place = tuple[str, int]  # a region of shared memory that the server knows, and bytes into it


class TritonClient:
    """What of a Triton server the engine needs. For one thread alone, in which it is made too.

    Args:
        url: grpc://HOST:PORT or http://HOST:PORT; HOST:PORT is gRPC.
        timeout_s: that the server may take for an answer.

    Raises:
        SettingError: the url is none of these.
        GraphError: tritonclient is not installed.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self.url = url
        self.timeout_s = timeout_s
        scheme, address = _split(url)
        self._library = _load(scheme)
        self._bounds = {"client_timeout": timeout_s} if scheme == "grpc" else {}
        self._json = {"as_json": True} if scheme == "grpc" else {}
        options: dict[str, Any] = {}
        if scheme == "http":
            options = {"connection_timeout": timeout_s, "network_timeout": timeout_s}
        self._client = self._library.InferenceServerClient(address, **options)

    def state(self, model: str) -> tuple[str, str] | None:
        """READY or another word, and the reason where it is another; None: no such model."""
        index = self._call("get_model_repository_index", **self._json)
        models = index.get("models", []) if isinstance(index, dict) else index
        for found in models:
            if found["name"] == model:
                return found.get("state", "not loaded"), found.get("reason", "")
        return None

    def parameter(self, model: str, name: str) -> str | None:
        """Of the model's config.pbtxt."""
        config = self._call("get_model_config", model, **self._json)
        parameters = config.get("config", config).get("parameters", {})
        value: str | None = parameters.get(name, {}).get("string_value")
        return value

    def register(self, name: str, key: str, num_bytes: int) -> None:
        """Raises GraphError if the server cannot open the shared memory of that key."""
        self._call("register_system_shared_memory", name, key, num_bytes)

    def unregister(self, name: str) -> None:
        self._call("unregister_system_shared_memory", name)

    def infer(
        self, model: str, tensors: Mapping[str, Array], places: Mapping[str, Place], output: str
    ) -> NDArray[np.float32]:
        """Run the model; tensors that have a place are not sent: the server finds them there."""
        inputs = [self._input(name, tensor, places.get(name)) for name, tensor in tensors.items()]
        outputs = [self._library.InferRequestedOutput(output)]
        return np.asarray(self._call("infer", model, inputs, outputs=outputs).as_numpy(output))

    def close(self) -> None:
        self._client.close()

    def _input(self, name: str, tensor: Array, place: Place | None) -> Any:
        kind = "INT64" if tensor.dtype == np.int64 else "FP32"
        given = self._library.InferInput(name, tensor.shape, kind)
        if place is None:
            given.set_data_from_numpy(tensor)
        else:
            region, offset = place
            given.set_shared_memory(region, tensor.nbytes, offset)
        return given

    def _call(self, method: str, *words: Any, **options: Any) -> Any:
        """Raises GraphError for what the server refuses, else UnavailableError or DeadlineError."""
        from tritonclient.utils import InferenceServerException

        try:
            return getattr(self._client, method)(*words, **options, **self._bounds)
        except InferenceServerException as error:
            raise self._name(error, error.status(), error.message()) from error
        except TimeoutError as error:
            raise self._name(error, LATE, "") from error
        except Exception as error:  # the HTTP client has no common base for what it raises
            raise self._name(error, LOST, first_line(error)) from error

    def _name(self, error: Exception, status: str | None, message: str) -> LSPTError:
        if status == LATE:
            return DeadlineError(f"the Triton server did not answer in {self.timeout_s:g} s")
        line = next(iter(message.splitlines()), "")
        if status == LOST:
            return UnavailableError(f"no Triton server answers at {self.url}: {line}")
        return GraphError(f"the Triton server at {self.url} refuses: {line}")


def _split(url: str) -> tuple[str, str]:
    scheme, found, address = url.rpartition("://")
    host, _, port = address.rstrip("/").rpartition(":")
    if (scheme not in SCHEMES and found) or not host or not port.isdecimal():
        raise SettingError(f"Triton's url is {url!r}; wanted grpc://HOST:PORT or http://HOST:PORT")
    return scheme or "grpc", address.rstrip("/")


def _load(scheme: str) -> ModuleType:
    try:
        return importlib.import_module(f"tritonclient.{scheme}")
    except ImportError as error:
        raise GraphError(
            "engine 'triton' needs its package: pip install '.[triton]' in a clone"
        ) from error
