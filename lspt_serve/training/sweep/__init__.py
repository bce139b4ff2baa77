"""Search hyperparameters on val with Optuna, then test what was chosen: see docs/sweep.md."""

from lspt_serve.training.sweep.config import SweepConfig, load_config
from lspt_serve.training.sweep.plan import Plan, check_plans, make_plans
from lspt_serve.training.sweep.sweep import Status, Sweep

__all__ = [
    "Plan",
    "Status",
    "Sweep",
    "SweepConfig",
    "check_plans",
    "load_config",
    "make_plans",
]
