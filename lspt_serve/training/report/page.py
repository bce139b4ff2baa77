"""index.html: the page around the pictures."""

from pathlib import Path
from typing import Any

from lspt_serve.training.report.charts import FEW, MAX_TICKS, cell_labels

__all__ = ["render_page"]

TEMPLATE = Path(__file__).with_name("page.html")
MAX_ROWS = 200  # labels in the table


def render_page(report: dict[str, Any], pictures: dict[str, tuple[int, int]]) -> str:
    """The page of a report.json; labels and names are escaped.

    Args:
        pictures: file name -> width and height in pixels, of those that there are.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": "{:.1%}".format, "duration": _duration}
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    return template.render(
        report,
        pictures=pictures,
        few=FEW,
        max_rows=MAX_ROWS,
        max_ticks=MAX_TICKS,
        cell_labels=cell_labels(len(report["labels"])),
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
