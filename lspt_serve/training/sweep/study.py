"""Studies in the storage: what they were started with, their items, and what was chosen.

A study has numbered items, the trials of a search or the seeds of the final runs. An Optuna trial
says in `item` which one it is. An item is done once a trial of it is COMPLETE or, where it failed
with an error, PRUNED; a trial that a killed process left behind is set to FAIL and counts for
nothing.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from lspt_serve import __version__
from lspt_serve.errors import SweepError, name_some
from lspt_serve.results.storage import DONE
from lspt_serve.training.sweep.config import Range, Sampler, Space
from lspt_serve.training.sweep.plan import grid_points

__all__ = [
    "begin",
    "choose",
    "create_sampler",
    "done",
    "finish",
    "open_study",
    "to_distributions",
    "version_notes",
    "why_all_failed",
]

VERSIONS = f"lspt-serve {__version__}, torch {torch.__version__}"


def open_study(storage: Any, name: str, setup: Mapping[str, Any]) -> optuna.Study:
    """The study of that name, new or gone on with.

    Raises:
        SweepError: it was started with another setup; what differs is named.
    """
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True
    )
    setup = json.loads(json.dumps(setup))
    stored = study.user_attrs.get("setup")
    if stored is None:  # new
        study.set_user_attr("versions", VERSIONS)
        study.set_user_attr("setup", setup)
    elif stored != setup:
        raise SweepError(
            f"the storage holds {name} with another setup: {_differences(stored, setup)}; "
            "give another --storage"
        )
    return study


def version_notes(studies: Iterable[optuna.Study]) -> list[str]:
    """A note for each other version that studies were begun with, where that is known."""
    begun = dict.fromkeys(study.user_attrs.get("versions", VERSIONS) for study in studies)
    return [
        f"begun with {versions}, and goes on with {VERSIONS}; what the config leaves to defaults "
        "may have changed"
        for versions in begun
        if versions != VERSIONS
    ]


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    before, now = _flat(stored), _flat(wanted)
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return name_some(f"{name} was {before.get(name)}, is {now.get(name)}" for name in names)


def _flat(setup: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in setup.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def done(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The finished items, by their numbers."""
    states = [TrialState[name] for name in DONE]
    return {t.user_attrs["item"]: t for t in study.get_trials(deepcopy=False, states=states)}


def begin(study: optuna.Study, item: int, space: Space) -> optuna.Trial:
    """A trial of the item, its values sampled; call it while no other process can.

    Trials that were running at this item, or had not come so far as to say at which, are of
    processes that are gone.
    """
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if left.user_attrs.get("item", item) == item:
            study.tell(left.number, state=TrialState.FAIL)
    trial = study.ask(to_distributions(space))
    trial.set_user_attr("item", item)
    return trial


def choose(study: optuna.Study) -> FrozenTrial | None:
    """The trial that is best on val, of equal ones that of lower loss, then the first.

    None if all have failed.
    """

    def order(trial: FrozenTrial) -> tuple[float, float, int]:
        return trial.values[0], -trial.user_attrs["val_loss"], -trial.user_attrs["item"]

    finished = [trial for trial in done(study).values() if trial.state == TrialState.COMPLETE]
    return max(finished, key=order, default=None)


def finish(study: optuna.Study, trial: optuna.Trial, value: float | None) -> None:
    """The item is done; None where it failed with an error."""
    if value is None:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, value)


def why_all_failed(study: optuna.Study) -> str:
    """For a search that has chosen nothing."""
    errors = [trial.user_attrs["error"] for trial in done(study).values()]
    return f"all {len(errors)} trial(s) failed: {errors[0]}"


def to_distributions(space: Space) -> dict[str, BaseDistribution]:
    """What Optuna draws from."""
    distributions: dict[str, BaseDistribution] = {}
    for name, values in space.items():
        if not isinstance(values, Range):
            distributions[name] = CategoricalDistribution(values)
        elif isinstance(values.low, int) and isinstance(values.high, int):
            distributions[name] = IntDistribution(values.low, values.high, log=values.log)
        else:
            distributions[name] = FloatDistribution(values.low, values.high, log=values.log)
    return distributions


def create_sampler(sampler: Sampler, space: Space, item: int, *, trials: int) -> BaseSampler:
    """A sampler for one item: seeded by its number, so that it draws the same whoever runs it.

    TPE also goes by the trials that are finished. Half of them, at most 10, are random (ours:
    Optuna's default of 10 would leave searches as short as those usual here without any TPE).
    """
    if sampler == "tpe":
        return TPESampler(seed=item, n_startup_trials=min(10, (trials + 1) // 2))
    random = RandomSampler(seed=item)
    if sampler == "random":
        return random
    point = list(grid_points(space))[item]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PartialFixedSampler(point, random)
