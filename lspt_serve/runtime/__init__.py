"""Bundles and an exported graph to answers. Needs numpy and ONNX Runtime, not torch."""

from lspt_serve.runtime.choose import (
    ENGINES,
    PRECISIONS,
    Candidate,
    EngineName,
    Refusal,
    choose_engine,
    fastest,
    try_engines,
)
from lspt_serve.runtime.classifier import Classifier
from lspt_serve.runtime.engine import Engine, Precision
from lspt_serve.runtime.events import SILENT, Events
from lspt_serve.runtime.onnx import Device, OnnxEngine
from lspt_serve.runtime.openvino import OpenVINOEngine
from lspt_serve.runtime.scores import Prediction, activate, top_labels
from lspt_serve.runtime.store import HOST_BYTES, PromptStore
from lspt_serve.runtime.triton import TRITON_URL, TritonEngine
from lspt_serve.runtime.watch import Watch

__all__ = [
    "ENGINES",
    "HOST_BYTES",
    "PRECISIONS",
    "SILENT",
    "TRITON_URL",
    "Candidate",
    "Classifier",
    "Device",
    "Engine",
    "EngineName",
    "Events",
    "OnnxEngine",
    "OpenVINOEngine",
    "Precision",
    "Prediction",
    "PromptStore",
    "Refusal",
    "TritonEngine",
    "Watch",
    "activate",
    "choose_engine",
    "fastest",
    "top_labels",
    "try_engines",
]
