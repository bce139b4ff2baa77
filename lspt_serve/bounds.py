"""What a task may ask of all others, in training as in serving."""

__all__ = ["MAX_PROMPTS"]

MAX_PROMPTS = 256  # of a task: all rows of a batch are as long as its longest
