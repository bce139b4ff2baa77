"""The HTTP side of the service: routes, errors, limits."""

from lspt_serve.api.app import create_app

__all__ = ["create_app"]
