"""Where a server finds its parts and what it makes of them, under BentoML and under Triton."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from lspt_serve.errors import SettingError, nearest
from lspt_serve.neighbours import NEIGHBOURS
from lspt_serve.preprocess import FORMATS, MAX_PIXELS, PILLOWS_PIXELS, Format, ImageLimits
from lspt_serve.room import Room
from lspt_serve.runtime import (
    HOST_BYTES,
    SILENT,
    TRITON_URL,
    Classifier,
    Device,
    EngineName,
    Events,
    Precision,
    PromptStore,
    choose_engine,
)
from lspt_serve.signatures import load_trusted_keys
from lspt_serve.sizes import MAX_REQUEST_BYTES

__all__ = ["ServiceSettings", "load_classifier"]

PREFIX = "LSPT_"
# of the workers' supervisor, of callers, of tests, and what Kubernetes tells of a service `lspt`
OTHERS = re.compile(
    rf"{NEIGHBOURS}|LSPT_API_KEY|LSPT_TEST_.*|LSPT_(.*_)?(SERVICE_HOST|SERVICE_PORT.*|PORT|PORT_\d.*)"
)
AT_ONCE = 2  # of the largest images are decoded, or more smaller ones; a pixel may take 20 bytes


def _split(words: object) -> object:
    return [word for word in words.split(",") if word] if isinstance(words, str) else words


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Formats = Annotated[tuple[Format, ...], BeforeValidator(_split), Field(min_length=1)]


class ServiceSettings(BaseModel):
    """Each setting is an environment variable LSPT_NAME, or a parameter of a model in Triton."""

    model_config = ConfigDict(frozen=True)

    graph: Path = Path("graph")  # what `lspt export` wrote
    bundles: Path = Path("bundles")  # a folder of what `lspt train` wrote
    engine: Literal["auto", EngineName] = "auto"  # auto: the fastest on this machine
    triton_url: str = TRITON_URL  # of engine triton: grpc:// or http://
    precision: Precision = "fp32"
    device: Device = "auto"  # auto: a CUDA GPU where there is one
    memory_mb: Annotated[int, Field(ge=0)] = HOST_BYTES // 2**20  # MiB of tasks' tensors
    pin: Names = ()  # tasks that are in memory from the start and stay there, NAME,NAME:ALIAS,...
    # how long an image may wait for others to share its batch; under load they come anyway
    max_delay_ms: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0.0
    formats: Formats = FORMATS  # of image files that are decoded
    max_pixels: Annotated[int, Field(ge=1, le=PILLOWS_PIXELS)] = MAX_PIXELS  # of an image
    max_bytes: Annotated[int, Field(ge=1)] = MAX_REQUEST_BYTES
    log_format: Literal["text", "json"] = "text"  # of the service's lines on stdout
    task_metrics: bool = True  # by task and version, too
    # of those who may change what is served; None: nobody may
    admin_token: Annotated[SecretStr, Field(min_length=1)] | None = None
    keys: Path | None = None  # a file of who may use which tasks; None: everybody may use all
    trusted_keys: Path | None = None  # of who may sign bundles; None: they need no signature

    @classmethod
    def from_env(cls) -> Self:
        """Raises SettingError for a value that there is not, or a setting: it may be misspelt."""
        keys = {name: PREFIX + name.upper() for name in cls.model_fields}
        for key in sorted(os.environ.keys() - keys.values()):
            if key.startswith(PREFIX) and not OTHERS.fullmatch(key):
                raise SettingError(f"{key} is no setting{nearest(key, keys.values())}")
        given = {name: os.environ[key] for name, key in keys.items() if key in os.environ}
        return cls.from_words(given, keys)

    @classmethod
    def from_words(cls, given: Mapping[str, str], keys: Mapping[str, str]) -> Self:
        """Settings that were given as text.

        Args:
            keys: what the settings are called where they were given.

        Raises:
            SettingError: a value that there is not.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            raise SettingError(f"{keys[name]} is {given[name]!r}: {first['msg']}") from error


def load_classifier(settings: ServiceSettings, events: Events = SILENT) -> Classifier:
    """Load the graph and all bundles that fit it.

    Raises:
        GraphError, BundleError: there is no graph, or no folder of bundles.
        SettingError: there are no trusted keys where they ought to be.
    """
    trusted = load_trusted_keys(settings.trusted_keys)
    engine = choose_engine(
        settings.graph,
        names=None if settings.engine == "auto" else [settings.engine],
        precision=settings.precision,
        device=settings.device,
        triton_url=settings.triton_url,
    )
    store = PromptStore(
        settings.bundles,
        engine.graph,
        host_bytes=settings.memory_mb * 2**20,
        pinned=settings.pin,
        trusted=trusted,
        events=events,
    )
    return Classifier(
        engine,
        store,
        max_delay_s=settings.max_delay_ms / 1000,
        limits=ImageLimits(
            settings.formats, settings.max_pixels, Room(AT_ONCE * settings.max_pixels)
        ),
        events=events,
    )
