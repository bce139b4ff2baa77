"""The HTTP side of the service: routes, errors, limits, metrics, logs."""

from lspt_serve.api.app import create_app
from lspt_serve.api.logs import configure_logging, ignore_warnings_of_decoders

__all__ = ["configure_logging", "create_app", "ignore_warnings_of_decoders"]
