"""The BentoML service: an exported graph and a folder of bundles behind HTTP.

    LSPT_GRAPH=graph LSPT_BUNDLES=bundles bentoml serve lspt_serve.service:LSPTService

BentoML brings its processes and their health (/livez, /readyz); the routes of lspt_serve.api are
mounted beside its own, for bytes must be checked before anything decodes them.
"""

import gc
import logging

import bentoml

from lspt_serve.api import configure_logging, create_app, ignore_warnings_of_decoders
from lspt_serve.api.auth import load_access
from lspt_serve.bentoml_app import (
    configure_middleware,
    configure_openapi,
    configure_unknown_paths,
)
from lspt_serve.runtime import SILENT, Watch
from lspt_serve.settings import ServiceSettings, load_classifier
from lspt_serve.supervisor import configure_supervisor

__all__ = ["LSPTService"]

# A request that waits keeps hundreds of objects alive, none of them in a circle; at Python's 700
# new ones the event loop would walk them all time and again.
GC_THRESHOLD = 10_000
logger = logging.getLogger(__name__)
app = create_app()
configure_supervisor()
configure_middleware(app)
configure_openapi(app)
configure_unknown_paths(app)


@bentoml.service(
    name="lspt",
    # the app has its own of both, which say more, and count nothing by what a caller made up
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(app, path="/")
class LSPTService:
    """One frozen Vision Transformer, many tasks: POST an image and a task's name to /classify."""

    def __init__(self) -> None:
        settings = ServiceSettings.from_env()
        configure_logging(settings.log_format)
        ignore_warnings_of_decoders()
        self.ready = False
        app.state.max_bytes = settings.max_bytes
        if not settings.task_metrics:
            app.state.metrics.tasks = SILENT
        app.state.access = load_access(settings.admin_token, settings.keys)
        self.classifier = load_classifier(settings, app.state.metrics)
        app.state.classifier = self.classifier
        self.watch = Watch(self.classifier.store)
        gc.collect()
        gc.freeze()  # what lives as long as the process need not be walked again: shorter pauses
        gc.set_threshold(GC_THRESHOLD)
        self.ready = True
        logger.info("serving %d task(s)", len(self.classifier.store))

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def stop(self) -> None:
        """Answer what waits."""
        self.ready = False
        self.watch.close()
        self.classifier.close()

    def __is_ready__(self) -> bool:
        return self.ready
