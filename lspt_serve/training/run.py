"""The folder of a run: what is trained, how far it has come, its logs.

    config.json   what is trained, and by which versions
    state.pt      only while the run is unfinished: all that going on exactly needs
    epochs.csv, events.out.tfevents.*      the logs
    report/       what a report made of the run
    result.json   only while the run is unfinished: the record of the result that it saved

A kill at any moment leaves a state that the same run goes on from. It is deleted once the run's
result and report are in place (`finish_run`), which therefore have to be written before. Of the
processes of torchrun the first reads and writes; the others are told.
"""

import hashlib
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lspt_serve import __version__
from lspt_serve.errors import OutputError, RunError, first_line, name_some
from lspt_serve.files import atomic_file, locked, remove_leftovers
from lspt_serve.models import Backbone, PromptedViT
from lspt_serve.preprocess import Preprocess
from lspt_serve.results.folders import CONFIG, EPOCHS, STATE
from lspt_serve.training.data import SPLITS, Dataset, Split
from lspt_serve.training.distributed import rank, share_from_first, world_size
from lspt_serve.training.init import Init
from lspt_serve.training.logs import Logs, is_event_file
from lspt_serve.training.progress import Epoch, Progress
from lspt_serve.training.settings import TrainSettings, pick_precision

__all__ = [
    "Run",
    "announce_result",
    "check_run",
    "describe_run",
    "finish_run",
    "has_saved",
    "is_unfinished",
    "open_run",
]

REPORT, RESULT = "report", "result.json"
MADE_WITH = "made_with"  # of config.json: what may differ, at the cost of the last bits
RESTART = "--restart to begin anew, or another --run"


def is_unfinished(folder: Path) -> bool:
    """Whether the folder holds a state to go on from."""
    return (folder / STATE).exists()


def announce_result(folder: Path, record: dict[str, Any]) -> None:
    """Say what is about to be saved, so that `has_saved` knows it again.

    Args:
        record: what bundle.json or baseline.json of the result will hold.
    """
    with atomic_file(folder / RESULT) as temporary:
        temporary.write_text(json.dumps([*_announced(folder), record]), "utf-8")


def has_saved(folder: Path, record: Path) -> bool:
    """Whether the result that this record belongs to is that of the folder's unfinished run."""
    if not is_unfinished(folder):
        return False
    try:
        return json.loads(record.read_bytes()) in _announced(folder)
    except (OSError, ValueError):
        return False


def _announced(folder: Path) -> list[Any]:
    """One more for each time that the run came to its end and was killed there."""
    try:
        return json.loads((folder / RESULT).read_bytes())  # type: ignore[no-any-return]
    except (FileNotFoundError, ValueError):  # none, or a broken one, which tells nothing
        return []


def finish_run(folder: Path) -> None:
    """Delete the state: what was trained is in place. Config and logs stay."""
    (folder / STATE).unlink(missing_ok=True)
    (folder / RESULT).unlink(missing_ok=True)


def check_run(folder: Path, *, overwrite: bool) -> None:
    """Refuse, before any work is done, a folder that is not ours to write.

    Args:
        overwrite: the logs of a finished run may be replaced.

    Raises:
        OutputError: the folder holds something else, or a finished run.
    """
    if folder.exists() and not _is_ours(folder):
        raise OutputError(f"{folder} holds something else than a run; give another --run")
    if (folder / EPOCHS).exists() and not is_unfinished(folder) and not overwrite:
        raise OutputError(
            f"{folder} holds the logs of a finished run; give another --run, or --overwrite to "
            "replace them"
        )


def _is_ours(folder: Path) -> bool:
    """A folder that is empty, but for hidden files (locks, temporaries), or has our config.json."""
    if not folder.is_dir():
        return False
    if all(path.name.startswith(".") for path in folder.iterdir()):
        return True
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    made_with = config.get(MADE_WITH) if isinstance(config, dict) else None
    return isinstance(made_with, dict) and "lspt-serve" in made_with


def describe_run(
    model: PromptedViT,
    backbone: Backbone,
    dataset: Dataset,
    preprocess: Preprocess,
    *,
    init: Init,
    settings: TrainSettings,
) -> dict[str, Any]:
    """config.json: all that the result depends on, as resolved, and what it is made with."""
    device = next(model.parameters()).device
    precision = pick_precision(settings.precision, device, model.backbone.embed_dim)
    given = {k: v for k, v in asdict(settings).items() if k != "device"}
    config = {
        "method": model.method.name,
        "options": asdict(model.method.settings),
        "pool": model.pool,
        "init": init,
        **given,
        "processes": world_size(),
        "precision": str(precision).removeprefix("torch."),
        "backbone": backbone.sha256,
        "preprocess": asdict(preprocess),
        "labels": dataset.labels,
        **{split: _fingerprint(getattr(dataset, split)) for split in SPLITS},
        MADE_WITH: {
            "lspt-serve": __version__,
            "torch": torch.__version__,
            "device": device.type,
            "threads": torch.get_num_threads(),
        },
    }
    return json.loads(json.dumps(config))  # type: ignore[no-any-return]  # as it is read again


def _fingerprint(split: Split) -> dict[str, Any]:
    """Over every pixel: about a second for each GB."""
    digest = hashlib.sha256(np.ascontiguousarray(split.images).data)
    digest.update(np.ascontiguousarray(split.targets).data)
    return {"images": len(split), "sha256": digest.hexdigest()}


class Run:
    """An open folder, to which `fit` gives every epoch; made by `open_run`.

    Args:
        config: its config.json.
        on_note: called with what a person should know.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], on_note: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.config = config
        self.on_note = on_note
        self.earlier: list[Epoch] = []  # of before an interruption
        self.earlier_s = 0.0
        self.started = time.perf_counter()
        self.logs: Logs | None = None

    @property
    def train_s(self) -> float:
        """Seconds of training so far, interruptions left out."""
        return self.earlier_s + time.perf_counter() - self.started

    def restore(self, progress: Progress) -> None:
        """Put the unfinished state, if there is one, into `progress`, and open the logs.

        Raises:
            RunError: a damaged state.
        """
        try:
            state = share_from_first(self._read_state())
            if state is not None:
                progress.load_state_dict(state["progress"])
                self.earlier, self.earlier_s = [*progress.epochs], state["train_s"]
        except Exception as error:  # of zip files, unpickling, shapes and names
            raise RunError(
                f"{self.folder / STATE} cannot be used ({first_line(error)}); give {RESTART}"
            ) from error
        if rank():
            return
        if progress.epochs:
            done, total = len(progress.epochs), self.config["epochs"]
            self.on_note(f"going on after epoch {done} of {total}")
        first, num_images = max(1, len(progress.epochs)), self.config["train"]["images"]
        self.logs = Logs(self.folder, first=first, num_images=num_images)
        if progress.epochs:
            self.logs.write(progress.epochs)  # a kill may have come before it

    def _read_state(self) -> dict[str, Any] | None:
        return _load(self.folder / STATE) if not rank() and is_unfinished(self.folder) else None

    def save(self, progress: Progress) -> None:
        """Write the state, then the logs.

        Raises:
            OutputError: they cannot be written, for example a full disk.
        """
        state = {"train_s": self.train_s, "progress": progress.state_dict()}
        if rank():
            return
        with atomic_file(self.folder / STATE) as temporary:
            torch.save(state, temporary)
        assert self.logs is not None
        self.logs.write(progress.epochs)

    def close(self) -> None:
        if self.logs is not None:
            self.logs.close()


def _load(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as file:
        if broken := file.testzip():  # torch does not look at the checksums that it writes
            raise ValueError(f"{broken} has another checksum")
    return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


@contextmanager
def open_run(
    folder: Path,
    config: dict[str, Any],
    *,
    restart: bool = False,
    on_note: Callable[[str], None] = lambda note: None,
) -> Iterator[Run]:
    """A run to train in: the unfinished one that the folder holds, or else a new one.

    A new run replaces the logs and the report of a finished one.

    Args:
        config: of `describe_run`.
        restart: begin anew whatever the folder holds.

    Raises:
        OutputError: the folder holds something else or cannot be written, or another process is
            at it.
        RunError: the unfinished run has another config; what differs is named.
    """
    if rank():
        yield Run(folder, config, on_note)
        return
    check_run(folder, overwrite=True)
    with locked(folder):
        for name in (CONFIG, STATE, EPOCHS, REPORT, RESULT):
            remove_leftovers(folder / name)
        if is_unfinished(folder) and not restart:
            for note in _compare(folder, config):
                on_note(note)
        else:
            _clear(folder)
            with atomic_file(folder / CONFIG) as temporary:
                temporary.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        with closing(Run(folder, config, on_note)) as run:
            yield run


def _clear(folder: Path) -> None:
    """Delete what a run wrote; the state last, so that until then the run is an unfinished one."""
    (folder / EPOCHS).unlink(missing_ok=True)
    for path in folder.glob("*"):
        if is_event_file(path):
            path.unlink()
    shutil.rmtree(folder / REPORT, ignore_errors=True)
    (folder / RESULT).unlink(missing_ok=True)
    (folder / STATE).unlink(missing_ok=True)


def _compare(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    """Notes on what the unfinished run was made with; raises RunError if it is another run."""
    there, here = json.loads((folder / CONFIG).read_bytes()), dict(config)
    made_there, made_here = there.pop(MADE_WITH), here.pop(MADE_WITH)
    if differences := _differences(there, here):
        raise RunError(
            f"{folder} holds an unfinished run with {name_some(differences)}; give {RESTART}"
        )
    if differences := _differences(made_there, made_here):
        yield f"{name_some(differences)}: the run goes on, but not bit for bit"


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    """`NAME VALUE there, VALUE here`, each; what is nested is named PARENT.NAME."""
    found = []
    for name in here | there:
        theirs, ours = there.get(name), here.get(name)
        if isinstance(theirs, dict) and isinstance(ours, dict):
            found += _differences(theirs, ours, f"{prefix}{name}.")
        elif theirs != ours:
            found.append(f"{prefix}{name} {_short(theirs)} there, {_short(ours)} here")
    return found


def _short(value: Any) -> str:
    text = name_some(value, limit=3) if isinstance(value, list) else str(value)
    return text[:12] if len(text) == 64 else text
