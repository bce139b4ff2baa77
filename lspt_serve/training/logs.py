"""What a run logs, an epoch at a time: epochs.csv and TensorBoard events."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from lspt_serve.errors import OutputError
from lspt_serve.files import atomic_file
from lspt_serve.results.folders import EPOCHS
from lspt_serve.training.progress import Epoch

__all__ = ["Logs", "is_event_file"]


def is_event_file(path: Path) -> bool:
    """Whether TensorBoard would read this file."""
    return path.name.startswith("events.out.tfevents.")


class Logs:
    """The logs in a run's folder; neither holds an epoch twice.

    Args:
        first: the epoch that is written first: TensorBoard hides what an interrupted run wrote
            from there on.
        num_images: of train, for images_per_s.
    """

    def __init__(self, folder: Path, *, first: int, num_images: int) -> None:
        self.table = folder / EPOCHS
        self.num_images = num_images
        self.events = SummaryWriter(folder, purge_step=first)

    def write(self, epochs: Sequence[Epoch]) -> None:
        """All epochs so far: a row for each; events for the last.

        Raises:
            OutputError: they cannot be written, for example a full disk.
        """
        rows = [self._row(epoch) for epoch in epochs]
        with atomic_file(self.table) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        try:
            number = rows[-1].pop("number")
            for name, value in rows[-1].items():
                self.events.add_scalar(name, value, number)
            self.events.flush()
        except OSError as error:
            raise OutputError(f"{self.events.log_dir}: no events: {error.strerror}") from error

    def close(self) -> None:
        self.events.close()

    def _row(self, epoch: Epoch) -> dict[str, float]:
        seconds = epoch.data_s + epoch.step_s
        return asdict(epoch) | {"images_per_s": self.num_images / max(seconds, 1e-9)}
