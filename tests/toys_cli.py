"""How a command ended."""

import re
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Command", "Ended", "check_error"]


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it printed."""

    code: object
    out: str
    err: str


Command = Callable[..., Ended]


def check_error(ended: Ended, message: str) -> None:
    """Exit code 2, nothing on stdout, and one line of error after those of progress."""
    assert ended.code == 2
    assert ended.out == ""
    *progress, error = ended.err.splitlines()
    assert error.startswith("error: ")
    assert re.search(message, error), error
    assert all("━" in line for line in progress), ended.err
