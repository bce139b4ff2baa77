"""What runs gave: their records, statistics and tables. Needs no torch."""

from lspt_serve.results.folders import runs_of
from lspt_serve.results.plot import draw_comparison
from lspt_serve.results.published import PUBLISHED, Pretraining
from lspt_serve.results.runs import Run, check_runs_output, load_runs, save_runs
from lspt_serve.results.statistics import Figure, mean_over_tasks, summarise
from lspt_serve.results.storage import runs_of_storage
from lspt_serve.results.table import Comparison, Grid, Row, compare, comparison_grid

__all__ = [
    "PUBLISHED",
    "Comparison",
    "Figure",
    "Grid",
    "Pretraining",
    "Row",
    "Run",
    "check_runs_output",
    "compare",
    "comparison_grid",
    "draw_comparison",
    "load_runs",
    "mean_over_tasks",
    "runs_of",
    "runs_of_storage",
    "save_runs",
    "summarise",
]
