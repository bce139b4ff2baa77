"""The Optuna storage of a sweep: one SQLite file, opened for work or to read its runs."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lspt_serve.errors import SweepError, first_line
from lspt_serve.results.runs import RUNS, Run

__all__ = ["DONE", "SEEDS", "open_storage", "read_runs", "runs_of_storage", "usable"]

SEEDS = "seeds/"  # the studies whose trials are runs; each trial holds its Run
DONE = ("COMPLETE", "PRUNED")  # Optuna's names of the states of a trial that counts
BUSY_S = 60  # how long to wait for another process that writes
ADVICE = {
    "SQLITE_BUSY": "another program holds it; wait for its end",
    "SQLITE_FULL": "make room on the disk",
}


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Raises SweepError where SQLite cannot read or write the file just now."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import OperationalError

    try:
        yield
    except (OperationalError, StorageInternalError) as error:
        mistake = error.__cause__ if isinstance(error, StorageInternalError) else error
        reason = getattr(mistake, "orig", None) or error  # SQLite's own
        advice = ADVICE.get(getattr(reason, "sqlite_errorname", ""), "mend that")
        raise SweepError(
            f"{path} cannot be used: {first_line(reason)}; {advice} and give the same command again"
        ) from error


def open_storage(path: Path, *, create: bool) -> Any:
    """The optuna.storages.RDBStorage in a file.

    Raises:
        SweepError: no such file (unless it may be created), not one of Optuna's, or one that
            cannot be used just now.
    """
    import optuna  # with SQLAlchemy, half a second
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if not create and not path.is_file():
        raise SweepError(f"{path}: no such file; wanted the --storage of an lspt sweep")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with usable(path):
            return optuna.storages.RDBStorage(
                f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": BUSY_S}}
            )
    except (OSError, SQLAlchemyError, RuntimeError, AssertionError) as error:
        raise SweepError(f"{path} is no storage of a sweep: {first_line(error)}") from error


def runs_of_storage(storage: Path) -> list[Run]:
    """The runs that a sweep's storage holds by now.

    Raises:
        SweepError: no such file, not a storage, one that cannot be used just now, or runs of
            another version of the package.
    """
    opened = open_storage(storage, create=False)
    try:
        with usable(storage):
            return read_runs(opened)
    finally:
        opened.engine.dispose()


def read_runs(storage: Any, names: Iterable[str] | None = None) -> list[Run]:
    """The runs in an open storage, by study and seed.

    Args:
        names: the studies, in the order wanted; None: all, in the order that they were begun in.
    """
    studies = {study.study_name: study._study_id for study in storage.get_all_studies()}
    if names is None:
        names = [name for name in studies if name.startswith(SEEDS)]
    runs = []
    for name in names:
        trials = storage.get_all_trials(studies[name], deepcopy=False)
        found = [trial.user_attrs["run"] for trial in trials if trial.state.name in DONE]
        runs += sorted(_validate(found), key=lambda run: run.seed)
    return runs


def _validate(found: list[Any]) -> list[Run]:
    try:
        return RUNS.validate_python(found)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise SweepError(f"the storage holds runs of another version: {message}") from error
