"""lspt inspect: what a bundle is."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lspt_serve.bundle import Bundle, load_bundle
from lspt_serve.cli.console import Json, explain_rounding, print_json
from lspt_serve.errors import name_some, printable

__all__ = ["inspect"]


def inspect(
    bundle: Annotated[Path, typer.Argument(help="A folder that lspt train wrote.")],
    as_json: Json = False,
) -> None:
    """Check a bundle strictly and print what it holds.

    Example:  lspt inspect bundles/flowers
    """
    loaded = load_bundle(bundle)
    if as_json:
        print_json(loaded.manifest.model_dump(mode="json"))
    else:
        Console().print(_table(loaded))


def _table(bundle: Bundle) -> Table:
    manifest, metrics = bundle.manifest, bundle.manifest.metrics
    rows = {
        "task": f"{manifest.name}, version {manifest.version}",
        "labels": f"{len(manifest.labels)}: {name_some(manifest.labels, limit=10)}",
        "method": manifest.method.name,
        "options": ", ".join(f"{k}={v}" for k, v in manifest.method.options.items()) or "none",
        "backbone": f"{manifest.backbone.source} (sha256 {manifest.backbone.sha256[:12]}…)",
        "preprocess": f"{manifest.preprocess.img_size} px, mean {list(manifest.preprocess.mean)}, "
        f"std {list(manifest.preprocess.std)}, crop_pct {manifest.preprocess.crop_pct}",
        "pool": manifest.pool,
        "tensors": "\n".join(f"{name} {shape}" for name, shape in manifest.tensors.items()),
        "dtype": manifest.dtype,
        "bytes": f"{bundle.num_bytes:,}",
        "license": manifest.license or "not said",
        "created with": manifest.created_with,
    }
    if origin := manifest.trained_as:
        options = ", ".join(f"{k}={v}" for k, v in origin.options.items())
        rows["trained as"] = f"{origin.name}: {options}"
    if metrics:
        rows["val accuracy"] = f"{metrics.val_accuracy:.1%} (epoch {metrics.best_epoch})"
        rows["test accuracy"] = f"{metrics.test_accuracy:.1%}"
        if rounding := explain_rounding(metrics):
            rows["rounding"] = rounding
        if metrics.test_ece is not None and metrics.test_ece_uncalibrated is not None:
            rows["calibration"] = (
                f"ECE {metrics.test_ece:.3f} on test, {metrics.test_ece_uncalibrated:.3f} before "
                f"temperature {metrics.temperature:.2f}"
            )
        rows["trained on"] = ", ".join(f"{k} {n}" for k, n in metrics.split.items())
        rows["seed, time"] = f"{metrics.seed}, {metrics.train_s:.1f} s"
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        lines = map(printable, value.split("\n"))  # a bundle may be a stranger's
        table.add_row(f"[bold]{name}[/]", escape("\n".join(lines)))
    return table
