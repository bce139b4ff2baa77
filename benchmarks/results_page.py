"""docs/results.md as text: made of the runs, the config and what was measured; see results.py."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lspt_serve.models import Backbone
from lspt_serve.results import Grid, Run, compare, comparison_grid
from lspt_serve.results.statistics import paired_difference
from lspt_serve.results.table import Text
from lspt_serve.training import Dataset
from lspt_serve.training.settings import pick_device, pick_precision
from lspt_serve.training.sweep import Plan

__all__ = ["to_page"]

MATERIAL = Path(__file__).with_name("material.md")
TRIED = Path(__file__).with_name("tried.md")
TARGETS = {"the best other prompt method": 1.0, "linear": 3.0}  # points of the mean over tasks
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # Student's t at 97.5 %, by seeds; of more it is less
COLLAPSED = 0.5  # of the median of an entry on a task


def to_page(
    methods: Sequence[Run],
    ablation: Sequence[Run],
    plans: Sequence[Plan],
    backbone: Backbone,
    tasks: Mapping[str, Dataset],
    latencies: Mapping[str, float],
) -> str:
    """The page.

    Args:
        plans: of the methods, in the order of their config.
        latencies: ms of one image, by entry.
    """
    runs = [*methods, *ablation]
    hours = sum(run.train_s or 0 for run in runs) / 3600
    parts = [
        "# Results",
        "Made by one command from two configs, [methods.toml](../benchmarks/methods.toml) and "
        "[ablation.toml](../benchmarks/ablation.toml); the runs are in "
        "[results.json](results.json):",
        "    python benchmarks/results.py --backbone vit.pth --data grocery81.tar \\\n"
        "      --data cifar100.tar --data signdigits10.tar --data clothing10.tar --processes 2",
        "## What is compared",
        MATERIAL.read_text("utf-8").strip(),
        to_sizes(backbone, tasks),
        to_circumstances(backbone, methods),
        "## Methods",
        "![Test accuracy of the methods on each task](results.png)",
        to_table(methods, latencies),
        "\n".join([*to_verdict(methods), *to_collapses(runs)]),
        to_choices(methods, plans),
        "## What was tried for LSPT",
        TRIED.read_text("utf-8").strip(),
        "## What LSPT is without its parts",
        *to_ablation(ablation, latencies),
        "*bytes a task* are fp32. *ms* is one image in ONNX Runtime, fp32, one thread, the median, "
        "all entries in turn, on a machine with nothing else to do. *train s* is rough: the "
        f"{len(runs)} runs ({hours:.1f} hours beside the searches) shared the cores with one "
        "another and with other work.",
        "## Published",
        "Beside figures that others published, of another backbone and other tasks:",
        "    lspt results docs/results.json --published mae\n"
        "    lspt results docs/results.json --published mocov3",
    ]
    return "\n\n".join(parts) + "\n"


def to_sizes(backbone: Backbone, tasks: Mapping[str, Dataset]) -> str:
    vit = backbone.vit
    caption = (
        f"Backbone {backbone.sha256[:12]}: {len(vit.blocks)} blocks of width {vit.embed_dim}, "
        f"patches of {vit.patch_embed.patch_size[0]} px."
    )
    rows = [
        [Text(name), *(Text(f"{len(part):,}") for part in (t.labels, t.train, t.val, t.test))]
        for name, t in tasks.items()
    ]
    return Grid(caption, ["task", "classes", "train", "val", "test"], rows).to_markdown()


def to_circumstances(backbone: Backbone, methods: Sequence[Run]) -> str:
    """How the runs were trained and chosen."""
    train = next(run.train for run in methods if run.method != "linear")
    linear = next(run.train for run in methods if run.method == "linear")
    dtype = pick_precision(train["precision"], pick_device("cpu"), backbone.vit.embed_dim)
    return (
        f"Images of {methods[0].image_size} px and {train['epochs']} epochs, where 224 px and 100 "
        f"are usual: these runs had no GPU. Batches of {train['batch_size']}, augmentation "
        f"{train['augment']}, {str(dtype).removeprefix('torch.')}; linear, whose features are "
        f"computed once, has {linear['epochs']} epochs and no augmentation. Each entry has on each "
        "task a search of the same number of trials on val, with seed 0; what did best is trained "
        "anew on train and val with each seed and tested once. *val* in results.json is that of "
        "the search, the same for all seeds."
    )


def to_table(runs: Iterable[Run], latencies: Mapping[str, float]) -> str:
    """The table of `lspt results`, with a column for latency."""
    parts = []
    for comparison in compare(list(runs)):
        grid = comparison_grid(comparison)
        rows = [[*row, to_cell(latencies.get(row[0].text))] for row in grid.rows]
        parts.append(Grid(grid.caption, [*grid.header, "ms"], rows, grid.notes).to_markdown())
    return "\n\n".join(parts)


def to_cell(latency: float | None) -> Text:
    return Text("-" if latency is None else f"{latency:.1f}")


def to_verdict(runs: Sequence[Run]) -> list[str]:
    """LSPT's mean over tasks beside the targets."""
    (comparison,) = compare(runs)
    means = {row.name: 100 * row.mean.mean for row in comparison.rows if row.mean}
    if not {"lspt", "linear"} <= means.keys():
        return ["- `lspt` or `linear` failed on a task: nothing to compare."]
    others = {
        name: value for name, value in means.items() if "lspt" not in name and name != "linear"
    }
    best = max(others, key=others.__getitem__)
    beaten = dict(zip(TARGETS, (best, "linear"), strict=True))
    lines = []
    for words, target in TARGETS.items():
        name = beaten[words]
        ahead = means["lspt"] - means[name]
        verdict = "met" if ahead >= target else "missed"
        known = "" if words == name else f" ({name})"
        lines.append(
            f"- `lspt` is {ahead:+.1f} points from {words}{known}; the target was "
            f"{target:+.0f}: **{verdict}**."
        )
    return lines


def to_collapses(runs: Iterable[Run]) -> list[str]:
    """Runs that are far below the others of their entry on a task."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.name, run.task].append(run)
    lines = []
    for own in groups.values():
        usual = median(run.test or 0 for run in own)
        lines += [
            f"- `{run.name}` on {run.task} collapsed with seed {run.seed}: {100 * run.test:.1f} %, "
            f"where the median of the seeds is {100 * usual:.1f} %."
            for run in own
            if run.test is not None and run.test < COLLAPSED * usual
        ]
    return lines


def to_choices(runs: Sequence[Run], plans: Iterable[Plan]) -> str:
    """What the search has chosen, by entry and task."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    found = {(run.name, run.task): run for run in sorted(runs, key=lambda run: run.error is None)}
    rows, at_the_end = [], 0
    for plan in plans:
        own = [found.get((plan.name, task)) for task in tasks]
        cells = [choice(run, plan) if run else "-" for run in own]
        searched = "; ".join(f"{name} {words(values)}" for name, values in lists(plan).items())
        start = " ".join(dict.fromkeys(run.init for run in own if run and run.init))
        rows.append([Text(plan.name), *map(Text, cells), Text(start), Text(searched)])
        at_the_end += sum(run is not None and is_at_the_end(run, plan) for run in own)
    caption = "What the search chose, and its accuracy on val in %. *start* is that of the prompts."
    notes = [
        f"{at_the_end} of {len(rows) * len(tasks)} choices are the largest of the values searched, "
        "in one of them at least: what is better still may lie beyond."
    ]
    return Grid(caption, ["entry", *tasks, "start", "searched"], rows, notes).to_markdown()


def lists(plan: Plan) -> dict[str, list[Any]]:
    """What was searched, of a grid."""
    return {name: values for name, values in plan.space.items() if isinstance(values, list)}


def words(values: Sequence[object]) -> str:
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def is_at_the_end(run: Run, plan: Plan) -> bool:
    return any(run.train[name] == max(values) for name, values in lists(plan).items())


def choice(run: Run, plan: Plan) -> str:
    if run.error or run.val is None:
        return "failed"
    return f"{words([run.train[name] for name in plan.space])}: {100 * run.val:.1f}"


def to_ablation(runs: Sequence[Run], latencies: Mapping[str, float]) -> list[str]:
    if len({run.name for run in runs}) < 2:
        return ["The variants have not been run yet."]
    first = runs[0].name
    return [
        "![Test accuracy of variants of LSPT on each task](ablation.png)",
        f"`{first}` is `lspt` of the table above, searched and trained anew; the others are "
        "trained with what was tuned for it, without a search of their own. `without coder` is "
        "`vpt-deep`; `without LPC` has no prompts of the blocks' own either: what leaves a block, "
        "with the mean patch added, enters the next. By this table the default cell is now one of "
        "D/8 (`lspt` above still has D/4), which did no worse than wider ones in fewer bytes, and "
        "16 prompts are the default: more did better, and each is a token to serve.",
        to_table(runs, latencies),
        "\n".join(to_differences(runs, first)),
    ]


def to_differences(runs: Sequence[Run], first: str) -> list[str]:
    """Which entries' seeds tell them from the first, by a 95 % interval of Student's t."""
    tests: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        if run.test is not None:
            tests[run.name][run.task][run.seed] = run.test
    lines = []
    for name in tests:
        paired = paired_difference(tests[name], tests[first]) if name != first else None
        if paired is None or paired.std is None:
            continue
        half = T_95.get(paired.n, min(T_95.values())) * paired.std / math.sqrt(paired.n)
        if abs(paired.mean) > half:
            difference = f"{100 * paired.mean:+.1f} ± {100 * half:.1f}"
            lines.append(f"- `{name}` is {difference} points from `{first}`.")
    rest = "the others" if lines else "all"
    lines.append(f"- The seeds of {rest} do not tell them from `{first}`.")
    return ["Differences seed by seed, with 95 % intervals of Student's t:", "", *lines]
