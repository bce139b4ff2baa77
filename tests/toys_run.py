"""lspt in a real process of its own, which can be made to kill itself at a chosen moment.

The processes come from a fork server that has imported torch once, so that each starts at once.
"""

import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import lspt_serve.bundle
import lspt_serve.training
from lspt_serve.cli import main
from lspt_serve.training import logs, task
from lspt_serve.training.report import write

__all__ = ["MOMENTS", "start_lspt"]

STEPS = 3  # in an epoch
Process = multiprocessing.context.ForkServerProcess

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["lspt_serve.training", "lspt_serve.cli"])


def start_lspt(
    words: Sequence[object],
    printed: Path,
    *,
    die: str | None = None,
    environment: Mapping[str, object] | None = None,
) -> Process:
    """Start a command; `printed` gets its stderr, `die` is one of MOMENTS."""
    variables = {name: str(value) for name, value in (environment or {}).items()}
    given = ([*map(str, words)], printed, die, variables)
    process = context.Process(target=_command, args=given)
    process.start()
    return process


def _command(words: list[str], printed: Path, die: str | None, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    torch.set_num_threads(1)
    if die != "in the report":
        vars(task)["write_report"] = _write_report
    if die is not None:
        owner, name, wrap = MOMENTS[die]
        setattr(owner, name, wrap(getattr(owner, name)))
    sys.argv = ["lspt", *words]
    main()


def _write_report(folder: Path, *given: Any, **named: Any) -> None:
    """In place of the real one, which takes a second."""
    folder.mkdir(exist_ok=True)


Function = Callable[..., Any]


def _kill(*given: Any, **named: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _on_call(count: int, instead: Function | None = None) -> Callable[[Function], Function]:
    """What does as before until its call number `count`, and then dies, before it or instead."""

    def wrap(function: Function) -> Function:
        calls = iter(range(1, sys.maxsize))

        def wrapped(*given: Any, **named: Any) -> Any:
            if next(calls) == count:
                (instead or _kill)(*given, **named)
            return function(*given, **named)

        return wrapped

    return wrap


def _write_half(state: Any, path: Path) -> None:
    whole = io.BytesIO()
    save(state, whole)
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    _kill()


save = torch.save
MOMENTS: dict[str, tuple[Any, str, Callable[[Function], Function]]] = {
    "in epoch 1": (torch.optim.AdamW, "step", _on_call(2)),
    "in epoch 3": (torch.optim.AdamW, "step", _on_call(2 * STEPS + 2)),
    "writing state 2": (torch, "save", _on_call(2, _write_half)),
    "after state 1": (logs.Logs, "write", _on_call(1)),
    "after state 2": (logs.Logs, "write", _on_call(2)),
    "after state 4": (lspt_serve.bundle, "save", _on_call(1)),
    "writing the bundle": (lspt_serve.bundle, "save", _on_call(2)),
    "in the report": (write, "render_page", _on_call(1)),
    "after the report": (lspt_serve.training, "finish_run", _on_call(1)),
}
