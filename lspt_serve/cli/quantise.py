"""lspt quantise: the shared graph in int8."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lspt_serve.bundle import Bundle, load_bundle
from lspt_serve.cli.console import Json, Overwrite, console, print_json, print_note, stoppable
from lspt_serve.errors import DataError
from lspt_serve.files import check_output, locked, remove_leftovers
from lspt_serve.graph import check_fits, load_graph_spec
from lspt_serve.preprocess import crop_middle, normalise
from lspt_serve.quantised import INT8, INT8_SPEC

if TYPE_CHECKING:
    from lspt_serve.runtime import Engine
    from lspt_serve.training import Dataset, Split

__all__ = ["quantise"]

BATCH_SIZE = 8
MAX_LOST = 0.5  # points of accuracy, before a note says what to do


def quantise(
    bundle: Annotated[Path, typer.Option(help="A bundle that fits the graph.")],
    data: Annotated[Path, typer.Option(help="The images of its task, as for lspt train.")],
    graph: Annotated[Path, typer.Option(help="What lspt export wrote.")] = Path("graph"),
    images: Annotated[int, typer.Option(help="Of train, to measure ranges on.", min=2)] = 128,
    seed: Annotated[
        int,
        typer.Option(help="Of the choice, and of a split as in lspt train.", min=0, max=2**63 - 1),
    ] = 0,
    on_bad_image: Annotated[
        Literal["refuse", "skip"], typer.Option(help="What to do when an image cannot be read.")
    ] = "refuse",
    cache: Annotated[
        Path | None, typer.Option(help="Keep decoded images in this folder for the next run.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Add an int8 twin to a shared graph, for CPUs that have instructions for it (VNNI, AMX).

    Once per graph: it serves every bundle that the graph does. The ranges of activations are
    measured on images of one task; how often its answers stay the same is measured on val and test.

    Example:  lspt quantise --graph graph --bundle bundles/flowers --data photos

    Then:  lspt serve --graph graph --precision int8
    """
    task, target = load_bundle(bundle), graph / INT8
    check_fits(task, load_graph_spec(graph))
    check_output(target, overwrite=overwrite, marker=INT8_SPEC)
    with stoppable():
        from lspt_serve.cli.training import decode  # torch: seconds to import
        from lspt_serve.export.quantise import load_nncf

        load_nncf()  # say that it is missing before minutes of decoding
        preprocess = task.manifest.preprocess
        dataset = decode(
            data,
            preprocess.img_size,
            crop_pct=preprocess.crop_pct,
            seed=seed,
            cache=cache,
            on_bad_image=on_bad_image,
        )
        _check_labels(task, dataset)
        with locked(target):
            remove_leftovers(target)
            check_output(target, overwrite=overwrite, marker=INT8_SPEC)
            _write(graph, task, _choose(dataset.train, images, seed))
    with stoppable(lambda: f"{target} is written"):
        measured, refused = _measure(graph, task, dataset), _refusal(graph)
    if as_json:
        print_json({"out": str(target), "bundle": task.name, **measured, "refused": refused})
    else:
        print(f"{target}: {task.name} in int8 beside fp32")
        Console().print(_table(measured))
    if refused:
        print_note(f"no server will take it: {refused}")
    lost = 100 * (measured["test"]["fp32_accuracy"] - measured["test"]["int8_accuracy"])
    if lost > MAX_LOST:
        print_note(f"int8 loses {lost:.1f} points on test; give more --images, or serve in bf16")


def _check_labels(bundle: Bundle, dataset: "Dataset") -> None:
    if dataset.labels != bundle.labels:
        raise DataError(
            f"the data has {len(dataset.labels)} labels, {dataset.labels[0]!r} to "
            f"{dataset.labels[-1]!r}, and bundle {bundle.name!r} has {len(bundle.labels)} others, "
            f"{bundle.labels[0]!r} to {bundle.labels[-1]!r}; give the data that it was trained on"
        )


def _choose(train: "Split", count: int, seed: int) -> NDArray[np.uint8]:
    rows = np.random.default_rng(seed).permutation(len(train))[:count]
    return np.asarray(train.images[np.sort(rows)])


def _write(graph: Path, bundle: Bundle, images: NDArray[np.uint8]) -> None:
    from lspt_serve.export import quantise_graph

    looks = 0
    with console.status("") as status:

        def count() -> None:
            nonlocal looks
            looks += 1
            status.update(f"quantising on {len(images)} images, each several times: {looks} looks")

        quantise_graph(graph, bundle, images, on_image=count)


def _measure(graph: Path, bundle: Bundle, dataset: "Dataset") -> dict[str, Any]:
    """By split: how many images, both accuracies, and how often both give the same answer."""
    from lspt_serve.runtime import OpenVINOEngine

    exact, near = OpenVINOEngine(graph), OpenVINOEngine(graph, precision="int8")
    measured = {}
    for name, split in {"val": dataset.val, "test": dataset.test}.items():
        with console.status(f"measuring on {name}, {len(split)} images"):
            wanted, got = (_answers(engine, bundle, split) for engine in (exact, near))
        measured[name] = {
            "images": len(split),
            "fp32_accuracy": float((wanted == split.targets).mean()),
            "int8_accuracy": float((got == split.targets).mean()),
            "top1_agreement": float((got == wanted).mean()),
        }
    return measured


def _refusal(graph: Path) -> str | None:
    """Why the twin may not serve."""
    from lspt_serve.runtime import Refusal, try_engines

    (found,) = try_engines(graph, names=["openvino"], precisions=["int8"])
    return found.reason if isinstance(found, Refusal) else None


def _answers(engine: "Engine", bundle: Bundle, split: "Split") -> NDArray[np.int64]:
    """The best label of every image, N."""
    preprocess, (weight, bias) = bundle.manifest.preprocess, bundle.head
    answers = []
    for start in range(0, len(split), BATCH_SIZE):
        pixels = crop_middle(split.images[start : start + BATCH_SIZE], preprocess.img_size)
        tasks = [bundle.method_tensors] * len(pixels)
        features = engine.features(normalise(pixels, preprocess), tasks)
        answers.append((features @ weight.T + bias).argmax(axis=1))
    return np.concatenate(answers)


def _table(measured: dict[str, Any]) -> Table:
    table = Table("split", "images", "fp32 accuracy", "int8 accuracy", "top-1 agreement", box=None)
    for split, row in measured.items():
        shares = ("fp32_accuracy", "int8_accuracy", "top1_agreement")
        table.add_row(split, str(row["images"]), *(f"{row[share]:.1%}" for share in shares))
    return table
