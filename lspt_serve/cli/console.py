"""What the commands share: stderr for people, stdout for results, and how options are read."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from lspt_serve.errors import MethodError
from lspt_serve.manifest import Metrics
from lspt_serve.preprocess import Normalisation

__all__ = [
    "DeviceOption",
    "ImgSize",
    "Json",
    "NormaliseBy",
    "Overwrite",
    "PrecisionOption",
    "Terminated",
    "console",
    "explain_rounding",
    "parse_options",
    "print_json",
    "print_note",
    "stoppable",
]

console = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, nothing else.")]
ImgSize = Annotated[
    int | None,
    typer.Option(help="Side of the images in pixels; the backbone's own unless given.", min=1),
]
NormaliseBy = Annotated[
    Normalisation | None,
    typer.Option(help="Pixels that the backbone was trained on; as its file says unless given."),
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(envvar="LSPT_DEVICE", help="auto: a CUDA GPU where there is one."),
]
PrecisionOption = Annotated[
    Literal["fp32", "fp16", "bf16", "int8"],
    typer.Option(
        envvar="LSPT_PRECISION",
        help="Of the matrix products; bf16 is faster, less exact; fp16 is TensorRT's, int8 needs "
        "lspt quantise.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that lspt wrote.")]


def print_json(record: Any) -> None:
    """JSON on stdout."""
    print(json.dumps(record, indent=2))


def explain_rounding(metrics: Metrics) -> str:
    """What float16 costs, for people; empty where the tensors are float32."""
    if (rounding := metrics.rounding) is None:
        return ""
    return (
        f"float16 loses {rounding.points_lost:.2f} points of test accuracy and changes "
        f"{rounding.answers_changed} of {metrics.split['test']} answers"
    )


def parse_options(options: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE words to a dict; values are JSON where they can be, else text."""
    parsed: dict[str, Any] = {}
    for word in options or []:
        name, equals, value = word.partition("=")
        if not equals:
            raise MethodError(f"option {word!r} is not of the form KEY=VALUE")
        try:
            parsed[name.replace("-", "_")] = json.loads(value.lower())
        except (ValueError, RecursionError):  # ValueError: numbers too long to be read, too
            parsed[name.replace("-", "_")] = None if value.lower() == "none" else value
    return parsed


def print_note(note: str) -> None:
    """What a person should know, on stderr."""
    console.print(f"[yellow]note:[/] {escape(note)}", highlight=False)


class Terminated(KeyboardInterrupt):
    """SIGTERM: what `kill` and batch systems send."""


@contextmanager
def stoppable(what_is_left: Callable[[], str] = lambda: "nothing was written") -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the command with one line and exit code 130 or 143.

    Not SIGTERM under torchrun, which sends it to processes that wait for one another in C.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.getsignal(signal.SIGTERM)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt as stop:
        console.print(f"stopped; {escape(what_is_left())}", soft_wrap=True, highlight=False)
        raise typer.Exit(143 if isinstance(stop, Terminated) else 130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
