"""Bundles and an exported graph to answers. Needs numpy and ONNX Runtime, not torch."""

from lspt_serve.runtime.classifier import Classifier, Prediction, top_labels
from lspt_serve.runtime.engine import Engine
from lspt_serve.runtime.onnx import OnnxEngine
from lspt_serve.runtime.store import PromptStore
from lspt_serve.runtime.watch import Watch

__all__ = ["Classifier", "Engine", "OnnxEngine", "Prediction", "PromptStore", "Watch", "top_labels"]
