"""Bundles and an exported graph to answers. Needs numpy and ONNX Runtime, not torch."""

from lspt_serve.runtime.classifier import Classifier, Prediction, top_labels
from lspt_serve.runtime.engine import Engine
from lspt_serve.runtime.onnx import OnnxEngine
from lspt_serve.runtime.store import PromptStore

__all__ = ["Classifier", "Engine", "OnnxEngine", "Prediction", "PromptStore", "top_labels"]
