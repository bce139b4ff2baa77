"""Spans are made where something collects them, and nowhere else."""

import os
from typing import Any

from bentoml._internal.configuration.containers import BentoMLContainer

__all__ = ["configure_tracing"]

DISABLED = "OTEL_SDK_DISABLED"  # OpenTelemetry's own
EVERY_URL = ".*"


def configure_tracing(service: Any) -> None:
    """BentoML makes a span of every request, exporter or not, at a cost that a refusal feels.

    Call it before BentoML makes its app. A trace that a caller names is in the log all the same.

    Args:
        service: of BentoML, whose settings count.
    """
    service.inject_config()  # as BentoML does before it makes the app
    if BentoMLContainer.tracing.exporter_type.get() is None and DISABLED not in os.environ:
        service.config["tracing"] = {"excluded_urls": EVERY_URL}
