"""One frozen Vision Transformer, thousands of tasks, one server.

Data flows one way: train -> bundle -> export / runtime -> service.
"""

import os

__version__ = "0.1.0"

# ONNX Runtime tells its makers of its use, unless this is set before it is imported
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
