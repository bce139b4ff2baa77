"""The BentoML service: an exported graph and a folder of bundles behind HTTP.

    LSPT_GRAPH=graph LSPT_BUNDLES=bundles bentoml serve lspt_serve.service:LSPTService

BentoML brings health, metrics and OpenAPI (/livez, /readyz, /metrics, /docs.json); the routes of
lspt_serve.api are mounted beside them, for bytes must be checked before anything decodes them.
"""

import gc
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import bentoml

from lspt_serve.api import create_app
from lspt_serve.errors import GraphError
from lspt_serve.runtime import Classifier, OnnxEngine, PromptStore, Watch

__all__ = ["LSPTService", "ServiceSettings", "load_classifier"]

logger = logging.getLogger(__name__)
app = create_app()


@dataclass(frozen=True)
class ServiceSettings:
    """Where the service finds its parts; each setting is an environment variable of that name."""

    graph: Path = Path("graph")  # LSPT_GRAPH: what `lspt export` wrote
    bundles: Path = Path("bundles")  # LSPT_BUNDLES: a folder of what `lspt train` wrote
    device: str = "auto"  # LSPT_DEVICE: auto, cpu or cuda

    @classmethod
    def from_env(cls) -> Self:
        """Raises GraphError for a device that there is not."""
        device = os.environ.get("LSPT_DEVICE", cls.device)
        if device not in {"auto", "cpu", "cuda"}:
            raise GraphError(f"LSPT_DEVICE is {device!r}; wanted auto, cpu or cuda")
        return cls(
            graph=Path(os.environ.get("LSPT_GRAPH", cls.graph)),
            bundles=Path(os.environ.get("LSPT_BUNDLES", cls.bundles)),
            device=device,
        )


def load_classifier(settings: ServiceSettings) -> Classifier:
    """Load the graph and all bundles that fit it; raises GraphError and BundleError."""
    engine = OnnxEngine(settings.graph, device=settings.device)  # type: ignore[arg-type]
    return Classifier(engine, PromptStore(settings.bundles, engine.graph))


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
