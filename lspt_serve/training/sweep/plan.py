"""What an entry of the config comes to: its plan, in which nothing is left to look up."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from lspt_serve.errors import DataError, LSPTError, SweepError, first_mistake, nearest
from lspt_serve.models import Backbone, create_prompted_vit
from lspt_serve.training.init import Init, pick_init
from lspt_serve.training.settings import TrainSettings, pick_device
from lspt_serve.training.sweep.config import (
    OPTIONS,
    Entry,
    Protocol,
    Range,
    Space,
    SweepConfig,
)

__all__ = ["Plan", "check_plans", "grid_points", "make_plans", "split_params", "train_settings"]

Params = Mapping[str, Any]  # what a search has chosen: of TrainSettings, or options.NAME
SETTINGS = TypeAdapter(TrainSettings)
# Of TrainSettings, what a config may not set: vtab holds out nothing to choose an epoch by.
PROTOCOLS_OWN: dict[Protocol, set[str]] = {
    "vtab": {"seed", "keep", "early_stop"},
    "plain": {"seed"},
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How an entry is searched and run; `like` names the entry whose search it goes by."""

    name: str
    method: str
    options: dict[str, Any]
    pool: str | None
    init: Init
    train: dict[str, Any]
    space: Space
    trials: int  # 0: no search of its own
    like: str | None

    def to_json(self) -> dict[str, Any]:
        space = {
            name: values.model_dump() if isinstance(values, Range) else values
            for name, values in self.space.items()
        }
        return {**asdict(self), "space": space}


def make_plans(config: SweepConfig) -> list[Plan]:
    """A plan for each entry, in their order.

    Raises:
        SweepError: names that clash or that there are not; the key is named.
    """
    _check_train(config.train, config, where="train")
    _check_space(config.space, config, where="space")
    if both := sorted(config.train.keys() & config.space.keys()):
        raise SweepError(f"{both[0]} is in [train] and in [space]; it is either set or searched")
    plans: dict[str, Plan] = {}
    for number, entry in enumerate(config.entry, start=1):
        where = f"entry.{number}"
        _check_train(entry.train, config, where=f"{where}.train")
        _check_space(entry.space, config, where=f"{where}.space")
        if entry.like is None:
            plan = _searched(entry, config, where)
        else:
            plan = _copied(entry, plans, where)
        if plan.name in plans:
            raise SweepError(
                f"{where}: two entries are called {plan.name!r}; give one another name"
            )
        plans[plan.name] = plan
    return list(plans.values())


def _searched(entry: Entry, config: SweepConfig, where: str) -> Plan:
    fixed = entry.train.keys() | {f"{OPTIONS}.{name}" for name in entry.options}
    if both := sorted(fixed & entry.space.keys()):
        raise SweepError(f"{where}: {both[0]} is set and searched; it is either one")
    shared = {name: values for name, values in config.space.items() if name not in fixed}
    space = shared | entry.space
    method = entry.method or "lspt"
    return Plan(
        name=entry.name or method,
        method=method,
        options=entry.options,
        pool=entry.pool,
        init=_init(entry.init or "auto"),
        train={k: v for k, v in (config.train | entry.train).items() if k not in space},
        space=space,
        trials=_count_trials(space, config),
        like=None,
    )


def _count_trials(space: Space, config: SweepConfig) -> int:
    """One where there is nothing to search."""
    if config.sampler == "grid":
        return math.prod(len(values) for values in space.values() if isinstance(values, list))
    return (config.trials or 1) if space else 1


def _copied(entry: Entry, plans: dict[str, Plan], where: str) -> Plan:
    searched = [plan.name for plan in plans.values() if plan.trials]
    if entry.like not in searched:
        raise SweepError(
            f"{where}.like: {entry.like!r} is no entry above it with a search of its own; wanted "
            f"one of: {', '.join(searched) or 'none'}{nearest(entry.like or '', searched)}"
        )
    if entry.space:
        raise SweepError(f"{where}.space: an entry with like has no search of its own")
    source = plans[entry.like]
    method = entry.method or source.method
    return Plan(
        name=entry.name or method,
        method=method,
        options=(source.options if method == source.method else {}) | entry.options,
        pool=entry.pool or source.pool,
        init=_init(entry.init) if entry.init else source.init,
        train=source.train | entry.train,
        space={},
        trials=0,
        like=entry.like,
    )


def _init(name: str) -> Init:
    if name not in get_args(Init):
        raise SweepError(f"unknown init {name!r}; wanted one of: {', '.join(get_args(Init))}")
    return name  # type: ignore[return-value]


def _check_train(train: Params, config: SweepConfig, *, where: str) -> None:
    own = PROTOCOLS_OWN[config.protocol]
    known = [field.name for field in fields(TrainSettings) if field.name not in own]
    for name in train:
        if name in own:
            raise SweepError(
                f"{where}.{name}: it is set by seeds and by protocol {config.protocol}"
            )
        if name not in known:
            raise SweepError(
                f"unknown key {where}.{name}; wanted one of: {', '.join(known)}"
                f"{nearest(name, known)}"
            )


def _check_space(space: Space, config: SweepConfig, *, where: str) -> None:
    names, _ = split_params(space)
    _check_train(names, config, where=where)
    ranges = [name for name, values in space.items() if isinstance(values, Range)]
    if config.sampler == "grid" and ranges:
        raise SweepError(f"{where}.{ranges[0]}: sampler grid wants a list of values, got a range")


def split_params(params: Params) -> tuple[dict[str, Any], dict[str, Any]]:
    """Names of TrainSettings, and options of the method without their prefix."""
    prefix = f"{OPTIONS}."
    train = {name: value for name, value in params.items() if not name.startswith(prefix)}
    options = {
        name.removeprefix(prefix): value for name, value in params.items() if name not in train
    }
    return train, options


def grid_points(space: Space) -> Iterator[dict[str, Any]]:
    """All combinations of a space of lists; the last name turns fastest."""
    lists = [values for values in space.values() if not isinstance(values, Range)]
    for point in product(*lists):
        yield dict(zip(space, point, strict=True))


def train_settings(train: Params, *, seed: int) -> TrainSettings:
    """Raises DataError for a value of the wrong type or out of range."""
    try:
        return SETTINGS.validate_python({**train, "seed": seed})
    except ValidationError as error:
        raise DataError(first_mistake(error)) from error


def check_plans(plans: list[Plan], backbone: Backbone) -> None:
    """Try every value that a search can reach the ends of, before hours of work.

    Raises:
        SweepError: a setting, method, option, pool, init or device that will not do; its entry is
            named.
    """
    for plan in plans:
        for params in _corners(plan.space):
            train, options = split_params(params)
            try:
                pick_device(train_settings(plan.train | train, seed=0).device)
                model = create_prompted_vit(
                    backbone,
                    plan.method,
                    num_classes=2,
                    pool=plan.pool,
                    options=plan.options | options,
                )
                pick_init(model.method, plan.init)
            except LSPTError as error:
                raise SweepError(f"entry {plan.name!r}: {error}") from error


def _corners(space: Space) -> Iterator[dict[str, Any]]:
    """Points that between them have each end of each range and each value of each list."""
    ends = {
        name: [values.low, values.high] if isinstance(values, Range) else values
        for name, values in space.items()
    }
    for number in range(max(map(len, ends.values()), default=1)):
        yield {name: values[number % len(values)] for name, values in ends.items()}
