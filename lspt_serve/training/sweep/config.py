"""The TOML file of a sweep, as it is written: see docs/sweep.md."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from lspt_serve.errors import SweepError, nearest

__all__ = ["Entry", "Protocol", "Range", "Sampler", "Space", "SweepConfig", "load_config"]

Protocol = Literal["vtab", "plain"]
Sampler = Literal["tpe", "random", "grid"]
OPTIONS = "options"  # [space.options], and what its names start with once they are flat


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(_Table):
    """Values from low to high; whole numbers only where both are written as whole numbers."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 where log is true, got {self.low}")
        return self


def _kind(value: Any) -> str | None:
    if isinstance(value, list):
        return "list"
    return "range" if isinstance(value, dict | Range) else None


Scalar = bool | int | float | str
Values = Annotated[
    Annotated[Range, Tag("range")] | Annotated[list[Scalar], Field(min_length=1), Tag("list")],
    Discriminator(
        _kind,
        custom_error_type="values",
        custom_error_message="wanted a list of values, or { low = ..., high = ..., log = false }",
    ),
]
Space = dict[str, Values]  # a TrainSettings' name, or options.NAME


class _HasSpace(_Table):
    space: Space = {}

    @model_validator(mode="before")
    @classmethod
    def _flatten_options(cls, table: Any) -> Any:
        """{options: {NAME: values}} to {options.NAME: values}."""
        space = table.get("space") if isinstance(table, dict) else None
        if not isinstance(space, dict) or not isinstance(space.get(OPTIONS), dict):
            return table
        options = {f"{OPTIONS}.{name}": values for name, values in space[OPTIONS].items()}
        rest = {name: values for name, values in space.items() if name != OPTIONS}
        return {**table, "space": rest | options}


class Entry(_HasSpace):
    """What is compared: a method with its options, and what is special about its training.

    `like` copies another entry, settings as tuned for it included; what is given beside it stays.
    """

    name: str | None = None  # the method's
    method: str | None = None  # lspt, or that of the entry that is copied
    options: dict[str, Any] = {}
    pool: str | None = None
    init: str | None = None
    train: dict[str, Any] = {}
    like: str | None = None


class SweepConfig(_HasSpace):
    """The whole file.

    `trials` are those of one entry on one task; a grid has as many as it has points.
    """

    protocol: Protocol = "vtab"
    img_size: Annotated[int, Field(ge=1)] | None = None  # the backbone's own
    crop_pct: float = 1.0
    trials: Annotated[int, Field(ge=1)] | None = None
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = [0]
    sampler: Sampler = "tpe"
    train: dict[str, Any] = {}
    entry: Annotated[list[Entry], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {self.seeds}")
        if self.sampler == "grid" and self.trials is not None:
            raise ValueError(
                "trials: sampler grid has as many as its grid has points; leave it out"
            )
        if self.sampler != "grid" and self.trials is None:
            raise ValueError(f"trials: sampler {self.sampler} needs to be told how many")
        return self


def load_config(path: Path) -> SweepConfig:
    """Raises SweepError, in one line that names the key, for a file that is no such config."""
    try:
        return SweepConfig.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise SweepError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise SweepError(f"{path}: {_explain(error)}") from error
    except ValueError as error:  # TOML's, and UTF-8's
        raise SweepError(f"{path} is no TOML: {error}") from error


def _explain(error: ValidationError) -> str:
    """The first mistake, named by its key; entries count from 1, as people do."""
    first = error.errors()[0]
    path = [part for part in first["loc"] if part not in ("range", "list")]
    key = ".".join(str(part + 1) if isinstance(part, int) else part for part in path)
    if first["type"] == "extra_forbidden":
        known = _keys_at(path[:-1])
        wanted = ", ".join(known)
        return f"unknown key {key}; wanted one of: {wanted}{nearest(str(path[-1]), known)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _keys_at(path: list[int | str]) -> list[str]:
    """The keys of the table at a place in the file."""
    if "space" in path:
        return list(Range.model_fields)
    return list((Entry if "entry" in path else SweepConfig).model_fields)
