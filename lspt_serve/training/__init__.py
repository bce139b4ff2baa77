"""Tune the tensors of one task on a frozen backbone and hand them on as a bundle."""

from lspt_serve.training.baseline import (
    Baseline,
    check_baseline,
    save_baseline,
    train_baseline,
)
from lspt_serve.training.data import Dataset, Split, load_dataset
from lspt_serve.training.distributed import join_processes, leave_processes, rank
from lspt_serve.training.init import Init, pick_init
from lspt_serve.training.run import (
    announce_result,
    check_run,
    finish_run,
    has_saved,
    is_unfinished,
)
from lspt_serve.training.settings import TrainSettings, pick_device
from lspt_serve.training.task import Tuned, create_bundle, train_task, tune
from lspt_serve.training.trainer import Epoch, fit

__all__ = [
    "Baseline",
    "Dataset",
    "Epoch",
    "Init",
    "Split",
    "TrainSettings",
    "Tuned",
    "announce_result",
    "check_baseline",
    "check_run",
    "create_bundle",
    "finish_run",
    "fit",
    "has_saved",
    "is_unfinished",
    "join_processes",
    "leave_processes",
    "load_dataset",
    "pick_device",
    "pick_init",
    "rank",
    "save_baseline",
    "train_baseline",
    "train_task",
    "tune",
]
