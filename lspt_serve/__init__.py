"""One frozen Vision Transformer, thousands of tasks, one server.

Data flows one way: train -> bundle -> export / runtime -> service.
"""

import os
import sys

__version__ = "0.1.0"

# ONNX Runtime and OpenVINO tell their makers of their use, unless this is so before their import
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if not installed
