"""The BentoML service: an exported graph and a folder of bundles behind HTTP.

    LSPT_GRAPH=graph LSPT_BUNDLES=bundles bentoml serve lspt_serve.service:LSPTService

BentoML brings health, metrics and OpenAPI (/livez, /readyz, /metrics, /docs.json); the routes of
lspt_serve.api are mounted beside them, for bytes must be checked before anything decodes them.
"""

import gc
import logging
import os
from pathlib import Path
from typing import Annotated, Literal, Self

import bentoml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lspt_serve.api import create_app
from lspt_serve.errors import SettingError
from lspt_serve.runtime import (
    ENGINES,
    Classifier,
    Device,
    EngineName,
    Precision,
    PromptStore,
    Watch,
    choose_engine,
)

__all__ = ["LSPTService", "ServiceSettings", "load_classifier"]

PREFIX = "LSPT_"
logger = logging.getLogger(__name__)
app = create_app()


class ServiceSettings(BaseModel):
    """Where the service finds its parts; each setting is an environment variable LSPT_NAME."""

    model_config = ConfigDict(frozen=True)

    graph: Path = Path("graph")  # what `lspt export` wrote
    bundles: Path = Path("bundles")  # a folder of what `lspt train` wrote
    engine: Literal["auto", EngineName] = "auto"  # auto: the fastest on this machine
    precision: Precision = "fp32"
    device: Device = "auto"  # auto: a CUDA GPU where there is one
    # how long an image may wait for others to share its batch; under load they come anyway
    max_delay_ms: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0.0

    @classmethod
    def from_env(cls) -> Self:
        """Raises SettingError for a value that there is not."""
        variables = {name: PREFIX + name.upper() for name in cls.model_fields}
        values = {name: os.environ[key] for name, key in variables.items() if key in os.environ}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = variables[str(first["loc"][0])]
            raise SettingError(f"{key} is {os.environ[key]!r}: {first['msg']}") from error


def load_classifier(settings: ServiceSettings) -> Classifier:
    """Load the graph and all bundles that fit it; raises GraphError and BundleError."""
    engine = choose_engine(
        settings.graph,
        names=ENGINES if settings.engine == "auto" else [settings.engine],
        precision=settings.precision,
        device=settings.device,
    )
    store = PromptStore(settings.bundles, engine.graph)
    return Classifier(engine, store, max_delay_s=settings.max_delay_ms / 1000)


@bentoml.service(name="lspt", traffic={"timeout": 60})
@bentoml.asgi_app(app, path="/")
class LSPTService:
    """One frozen Vision Transformer, many tasks: POST an image and a task's name to /classify."""

    def __init__(self) -> None:
        self.classifier = load_classifier(ServiceSettings.from_env())
        app.state.classifier = self.classifier
        self.watch = Watch(self.classifier.store)
        gc.collect()
        gc.freeze()  # what lives as long as the process need not be walked again: shorter pauses
        logger.info("serving %d task(s)", len(self.classifier.store))

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def stop(self) -> None:
        """Answer what waits."""
        self.watch.close()
        self.classifier.close()

    def __is_ready__(self) -> bool:
        return hasattr(app.state, "classifier")
