"""lspt classify: image files to labels, here or by a running server."""

import asyncio
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lspt_serve.cli.answers import Write, check_suffix, print_list, print_tables, writing
from lspt_serve.cli.console import (
    Json,
    Overwrite,
    Terminated,
    console,
    print_note,
    stoppable,
)
from lspt_serve.errors import LSPTError, OptionError
from lspt_serve.files import atomic_file, check_output
from lspt_serve.preprocess import FORMATS
from lspt_serve.schemas import Activation, Item

if TYPE_CHECKING:
    from lspt_serve.cli.classifying import Source
    from lspt_serve.client import AsyncClient

__all__ = ["classify"]

PAIRS = 32  # of an image and a task, that a server is asked for at once


def classify(
    images: Annotated[
        list[Path],
        typer.Argument(help="Files, folders of them, or - for a file on stdin."),
    ],
    tasks: Annotated[
        list[str],
        typer.Option("--task", help="NAME, NAME@VERSION or NAME:ALIAS; give it once for each."),
    ],
    url: Annotated[
        str | None,
        typer.Option(help="A running server, http://HOST:PORT, in place of --graph, --bundles."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="For that server.", envvar="LSPT_API_KEY")
    ] = None,
    graph: Annotated[
        Path | None, typer.Option(help="What lspt export wrote; ./graph unless given.")
    ] = None,
    bundles: Annotated[
        Path | None, typer.Option(help="Folder of bundles; ./bundles unless given.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Labels, best first.", min=1, max=1000)] = 5,
    activation: Annotated[
        Activation,
        typer.Option(help="Scores: softmax, sigmoid where labels do not exclude another, none."),
    ] = "softmax",
    threshold: Annotated[float | None, typer.Option(help="No labels that score less.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A .csv, .json, .jsonl or .parquet file in place of the table."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Classify image files by one task or several.

    Folders are searched whole, in order of name, and answers come in that order. An image that
    cannot be classified has an error in its place; if none could be, the exit code is 1. With --out
    x.csv a command that is stopped leaves what it has done in x.partial.csv, or x.partial-2.csv.

    Example:  lspt classify photo.jpg --task flowers

    Example:  lspt classify photos --task flowers --task birds --out answers.csv

    Example:  lspt classify photos --task flowers --top-k 1 --url http://127.0.0.1:3000
    """
    if out is not None and as_json:
        raise OptionError("both --out and --json; give one of them")
    if url is not None and (graph or bundles):
        raise OptionError("--url is in place of --graph and --bundles; give it or these")
    if out is not None:
        check_suffix(out)
        check_output(out, overwrite=overwrite)
    from lspt_serve.cli.classifying import find_images

    asked = {"top_k": top_k, "activation": activation, "threshold": threshold}
    tally = _Tally()
    with (
        stoppable(tally.what_is_left),
        _here(graph, bundles) if url is None else _server(url, api_key) as answering,
        _bar() as bar,
        _output(out, as_json, bar, tally) as write,
    ):
        sources = find_images(images, answering.formats)
        row = bar.add_task("classifying", total=len(sources), status="")
        tally.started = time.monotonic()

        def done(items: Sequence[Item]) -> None:
            write(items)
            tally.add(items)
            bar.update(row, completed=tally.images, status=tally.speed)

        try:
            asyncio.run(_run(answering, sources, list(dict.fromkeys(tasks)), asked, done))
        except asyncio.CancelledError:
            raise Terminated from None
    console.print(escape(tally.summary), highlight=False, soft_wrap=True)
    if tally.failed == tally.answers:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Answering:
    """Who answers; `pairs` of an image and a task at once, for files of these formats."""

    client: "AsyncClient"
    pairs: int
    formats: Sequence[str]


@contextmanager
def _server(url: str, api_key: str | None) -> Iterator[_Answering]:
    from lspt_serve.cli.classifying import ATTEMPTS
    from lspt_serve.client import AsyncClient

    yield _Answering(AsyncClient(url, api_key=api_key, retries=ATTEMPTS), PAIRS, FORMATS)


@contextmanager
def _here(graph: Path | None, bundles: Path | None) -> Iterator[_Answering]:
    """The service's own app in this process: answers and limits are those of a server."""
    from httpx import ASGITransport

    from lspt_serve.api import create_app
    from lspt_serve.cli.classifying import ATTEMPTS
    from lspt_serve.client import AsyncClient
    from lspt_serve.settings import ServiceSettings, load_classifier

    given = {"graph": graph, "bundles": bundles}
    settings = ServiceSettings.from_env().model_copy(
        update={name: path for name, path in given.items() if path is not None}
    )
    with console.status(escape(f"trying the engines on {settings.graph}")):
        classifier = load_classifier(settings)
    app = create_app(max_bytes=settings.max_bytes)
    app.state.classifier = classifier
    transport = ASGITransport(app, raise_app_exceptions=False)
    with closing(classifier):
        client = AsyncClient(transport=transport, retries=ATTEMPTS)
        yield _Answering(client, 2 * classifier.max_batch_size, settings.formats)


@dataclass
class _Tally:
    """How far it is. An answer is that of an image and a task."""

    images: int = 0
    answers: int = 0
    failed: int = 0
    kept: Path | None = None  # what was done when it was stopped
    started: float = 0.0  # of time.monotonic

    def add(self, items: Sequence[Item]) -> None:
        self.images += 1
        self.answers += len(items)
        self.failed += sum(item.error is not None for item in items)

    @property
    def speed(self) -> str:
        return f"{self.images / max(time.monotonic() - self.started, 1e-9):.1f} images/s"

    @property
    def summary(self) -> str:
        counts = f"{self.images} image(s), {self.answers} answer(s), {self.failed} failed"
        return f"{counts}; {self.speed}"

    def what_is_left(self) -> str:
        if self.kept is None:
            return "nothing was written"
        return f"the answers of {self.images} image(s) are in {self.kept}"


async def _run(
    answering: _Answering,
    sources: Sequence["Source"],
    tasks: Sequence[str],
    asked: Mapping[str, Any],
    done: Write,
) -> None:
    from lspt_serve.cli.classifying import classify_files

    # by the loop, as with Ctrl-C: an exception between any two lines would leave half a task
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    async with answering.client as client:
        for task in tasks:
            await client.task(task)  # one that there is not is no matter of the images
        answers = classify_files(client, sources, tasks, pairs=answering.pairs, **asked)
        async with aclosing(answers):
            async for items in answers:
                done(items)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # to where the bar is
        disable=not console.is_terminal,
    )


@contextmanager
def _paused(bar: Progress) -> Iterator[None]:
    """What is printed meanwhile does not run into the bar."""
    bar.stop()
    yield
    bar.start()


@contextmanager
def _output(out: Path | None, as_json: bool, bar: Progress, tally: _Tally) -> Iterator[Write]:
    """Where the answers go; a file that is stopped half-way gets another name."""
    if out is None:
        with print_list() if as_json else print_tables(partial(_paused, bar)) as write:
            yield write
        return
    with atomic_file(out) as temporary:
        try:
            with writing(temporary, out.suffix) as write:
                yield write
        except (KeyboardInterrupt, LSPTError) as stop:
            if tally.images:
                tally.kept = _find_partial(out)
                temporary.replace(tally.kept)
                if isinstance(stop, LSPTError):
                    print_note(tally.what_is_left())
            raise


def _find_partial(out: Path) -> Path:
    """x.partial.csv, or the first of x.partial-2.csv, ... that is not there yet."""
    kept = out.with_name(f"{out.stem}.partial{out.suffix}")
    for number in count(2):
        if not kept.exists():
            break
        kept = out.with_name(f"{out.stem}.partial-{number}{out.suffix}")
    return kept
