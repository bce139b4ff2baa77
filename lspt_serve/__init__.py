"""One frozen Vision Transformer, thousands of tasks, one server.

Data flows one way: train -> bundle -> export / runtime -> service.
"""

__version__ = "0.1.0"
