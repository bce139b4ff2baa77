"""The HTTP side of the service: routes, schemas, errors, limits."""

from lspt_serve.api.app import create_app

__all__ = ["create_app"]
