"""Images per second of every engine and precision, with prompts and without.

    python benchmarks/bench_engines.py
    python benchmarks/bench_engines.py --device cuda

For each ViT (224 px, random weights) all engines that serve here take turns on two graphs: the
shared one, with LSPT's defaults and 10 prompts of one task, and timm's own forward without prompts.
Both have an int8 twin, calibrated on the images that are run: this is of speed, not of accuracy.
What is refused stands in the figures with its reason. Before an arm is timed, its answers are held
to those of torch in fp32 within the gate's tolerance.

The expected cost of prompts is the ratio of FLOPs, with prompts to without: torch counts the matrix
products and convolutions of both, so that the longer rows, in attention squared, and the coder are
in it. The ceiling is the best large matrix product in a precision, by torch or OpenVINO.
Targets are for CPUs; those for a GPU are bench_gpu.py's.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    Seconds,
    Target,
    check_equal,
    clean_up_when_stopped,
    create_parser,
    describe_machine,
    paired_ratio,
    parse,
    progress,
    spread,
    take_turns,
)
from numpy.typing import NDArray
from serving_page import finish
from vits import (
    PlainViT,
    count_flops,
    create_backbone,
    export_plain,
    linear_bundle,
    measure_ceiling,
    random_bundles,
    short_name,
)

from lspt_serve.bundle import Bundle
from lspt_serve.export import create_model, export_graph, quantise_graph
from lspt_serve.feed import TaskTensors
from lspt_serve.models import Backbone
from lspt_serve.preprocess import normalise
from lspt_serve.reference import MAX_ERROR, row_errors
from lspt_serve.runtime import PRECISIONS, Candidate, Engine, Refusal, try_engines

VITS = ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"]
BATCH_SIZES = [1, 8, 32]
BASELINE = ("onnxruntime", "fp32")
MAX_ROUNDS, BUDGET_S = 15, 30.0
MIN_TURN_S = {"cpu": 0.2, "cuda": 0.05}  # a GPU's batches take a hundredth of a CPU's
CEILINGS = ("fp32", "bf16")
PROMPTED, PLAIN = "prompted", "plain"
COST, BF16, INT8 = "cost of prompts", "bf16", "int8"
Array = NDArray[np.float32]
Key = tuple[str, str, str]  # engine, precision, graph


def measure_vit(vit: str, args: Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        progress(f"{vit}: exporting")
        backbone = create_backbone(vit, folder)
        (bundle,) = random_bundles(backbone, 1)
        spec = export_graph(backbone, folder / PROMPTED, like=bundle)
        export_plain(backbone, spec, folder / PLAIN)
        pixels = random_pixels(max(args.batch_sizes), backbone.preprocess.img_size)
        if args.device == "cpu":
            progress(f"{vit}: quantising")
            quantise_graph(folder / PROMPTED, bundle, pixels)
            quantise_graph(folder / PLAIN, linear_bundle(backbone), pixels)
        engines, refused = find_engines(folder, args.device)
        flops = {
            PROMPTED: count_flops(backbone, bundle),
            PLAIN: count_flops(backbone, None),
        }
        images = normalise(pixels, backbone.preprocess)
        wanted = answer_in_torch(backbone, bundle, images)
        rows = []
        for batch_size in args.batch_sizes:
            progress(f"{vit}: batches of {batch_size}")
            arms = {
                key: to_arm(engine, images[:batch_size], bundle) for key, engine in engines.items()
            }
            errors = check_arms(arms, wanted, batch_size)
            rows += to_rows(time_arms(arms, args), errors, batch_size)
    return {"vit": short_name(vit), "flops": flops, "refused": refused, "rows": rows}


def random_pixels(count: int, img_size: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, img_size, img_size, 3), np.uint8)


def find_engines(folder: Path, device: Any) -> tuple[dict[Key, Engine], list[dict[str, str]]]:
    """All engines and precisions on both graphs; those that do not serve, with their reasons."""
    engines: dict[Key, Engine] = {}
    refused = []
    for graph in (PROMPTED, PLAIN):
        for found in try_engines(folder / graph, precisions=PRECISIONS, device=device):
            progress(f"{graph}: {found}")
            if isinstance(found, Refusal):
                known = {"engine": found.name, "precision": found.precision, "graph": graph}
                refused.append({**known, "reason": found.reason.replace(f"{folder}/", "")})
            else:
                engines[to_key(found, graph)] = found.engine
    return engines, refused


def to_key(found: Candidate, graph: str) -> Key:
    return found.engine.name, found.engine.precision, graph


def answer_in_torch(backbone: Backbone, bundle: Bundle, images: Array) -> dict[str, Array]:
    """Features in fp32, by graph; image by image, as batches change nothing but the time."""
    modules: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        PROMPTED: create_model(backbone, bundle).forward_features,
        PLAIN: PlainViT(backbone),
    }
    with torch.inference_mode():
        return {
            graph: np.concatenate([forward(torch.from_numpy(image[None])) for image in images])
            for graph, forward in modules.items()
        }


def to_arm(engine: Engine, images: Array, bundle: Bundle) -> Callable[[int], Array]:
    tasks: Sequence[TaskTensors] = [bundle.method_tensors] * len(images)
    return lambda number: engine.features(images, tasks)


def check_arms(
    arms: Mapping[Key, Callable[[int], Array]], wanted: Mapping[str, Array], batch_size: int
) -> dict[Key, float]:
    """The error of each arm's worst row; ends the script where it is more than the gate allows."""
    errors = {}
    for key, arm in arms.items():
        _, precision, graph = key
        error = float(row_errors(arm(0), wanted[graph][:batch_size]).max())
        tolerance = MAX_ERROR[precision]  # type: ignore[index]
        errors[key] = check_equal(f"{' '.join(key)}, batch of {batch_size}", error, tolerance)
    return errors


def time_arms(arms: Mapping[Key, Callable[[int], Array]], args: Namespace) -> dict[Key, Any]:
    names = {"|".join(key): key for key in arms}
    seconds: Seconds = take_turns(
        {name: arms[key] for name, key in names.items()},
        max_rounds=args.rounds,
        budget_s=args.budget_s,
        min_turn_s=MIN_TURN_S[args.device],
    )
    return {key: seconds[name] for name, key in names.items()}


def to_rows(
    seconds: Mapping[Key, list[float]], errors: Mapping[Key, float], batch_size: int
) -> list[dict[str, Any]]:
    """A row for each engine and precision; a graph that it was refused for is null."""
    rows = []
    for engine, precision in dict.fromkeys(key[:2] for key in seconds):
        row: dict[str, Any] = {"engine": engine, "precision": precision, "batch_size": batch_size}
        for graph in (PROMPTED, PLAIN):
            key = (engine, precision, graph)
            taken = seconds.get(key)
            row[graph] = taken and {
                "images_per_s": spread([batch_size / each for each in taken]),
                "error": errors[key],
                "seconds": taken,
            }
        both = row[PROMPTED] and row[PLAIN]
        row["ratio"] = (
            paired_ratio(row[PROMPTED]["seconds"], row[PLAIN]["seconds"]) if both else None
        )
        rows.append(row)
    return rows


def to_targets(vits: Sequence[Mapping[str, Any]]) -> list[Target]:
    """Of the largest ViT, each by its worst batch size."""
    largest = max(vits, key=lambda vit: vit["flops"][PLAIN])
    expected = largest["flops"][PROMPTED] / largest["flops"][PLAIN]
    ratios = {
        f"{row['engine']} {row['precision']}, batch {row['batch_size']}": row["ratio"] / expected
        for row in largest["rows"]
        if row["ratio"]
    }
    worst = max(ratios, key=ratios.__getitem__, default=None)
    return [
        Target(
            COST,
            "at most",
            1.10,
            ratios[worst] if worst else None,
            f"{largest['vit']}, cost over expected cost; the worst is {worst}",
        ),
        to_speedup(largest, BF16, 1.8),
        to_speedup(largest, INT8, 2.5),
    ]


def to_speedup(vit: Mapping[str, Any], precision: str, target: float) -> Target:
    """The fastest engine of a precision beside the baseline, at its worst batch size."""
    gains: dict[int, dict[str, float]] = {}
    for batch_size in dict.fromkeys(row["batch_size"] for row in vit["rows"]):
        own = [row for row in vit["rows"] if row["batch_size"] == batch_size and row[PROMPTED]]
        base = [row for row in own if (row["engine"], row["precision"]) == BASELINE]
        found = {row["engine"]: row for row in own if row["precision"] == precision}
        for name, row in found.items() if base else ():
            ratio = paired_ratio(base[0][PROMPTED]["seconds"], row[PROMPTED]["seconds"])
            gains.setdefault(batch_size, {})[name] = ratio
    if not gains:
        return Target(precision, "at least", target, None, to_reason(vit["refused"], precision))
    best = {batch_size: max(ratios.values()) for batch_size, ratios in gains.items()}
    least = min(best, key=best.__getitem__)
    note = f"{vit['vit']}, images/s over {' '.join(BASELINE)}; the least is batch {least}"
    return Target(precision, "at least", target, best[least], note)


def to_reason(refused: Iterable[Mapping[str, str]], precision: str) -> str:
    reasons = [
        each["reason"]
        for each in refused
        if each["precision"] == precision and each["graph"] == PROMPTED
    ]
    return "; ".join(reasons) or f"no engine here has {precision}"


def parse_args(words: Sequence[str] | None) -> Namespace:
    parser = create_parser(__doc__)
    parser.add_argument("--vit", action="append", help="a timm name or a file; can be repeated")
    parser.add_argument("--batch-size", type=int, action="append", help="can be repeated")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parse(parser, words)
    args.vits = args.vit or (VITS[:1] if args.quick else VITS)
    args.batch_sizes = args.batch_size or (BATCH_SIZES[:2] if args.quick else BATCH_SIZES)
    args.rounds = 3 if args.quick else MAX_ROUNDS
    args.budget_s = 1.0 if args.quick else BUDGET_S
    return args


def main(words: Sequence[str] | None = None) -> None:
    args = parse_args(words)
    machine = describe_machine()
    side = 512 if args.quick else 4096
    ceilings = {name: measure_ceiling(name, args.device, side) for name in CEILINGS}
    vits = [measure_vit(vit, args) for vit in args.vits]
    report = {"machine": machine, "device": args.device, "ceilings": ceilings, "vits": vits}
    if args.device == "cuda":
        finish("engines_cuda", report, [], args)
    else:
        finish("engines", report, to_targets(vits), args)


if __name__ == "__main__":
    clean_up_when_stopped()
    main()
