"""The OpenAPI document: what the routes say of themselves, and what is known of them here."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from lspt_serve import __version__
from lspt_serve.api.aliases import AliasVersion
from lspt_serve.api.openapi import PLAIN
from lspt_serve.api.v2.repository import ChangeRequest, IndexRequest
from lspt_serve.api.v2.wire import InferRequest

__all__ = ["OF_BENTOML", "describe"]

DESCRIPTION = (
    "One frozen Vision Transformer, many tasks. Under /v2 it speaks the Open Inference Protocol."
)
READ_BY_HAND = (AliasVersion, ChangeRequest, IndexRequest, InferRequest)
REF = "#/components/schemas/{model}"
NEVER_SENT = "HTTPValidationError"  # what the web framework thinks it answers with 422
FOR_ADMIN: list[dict[str, list[str]]] = [{"admin": []}]
WITH_KEY: list[dict[str, list[str]]] = [{}, {"key": []}]  # none where there are no LSPT_KEYS
SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": "One of LSPT_KEYS."},
    "admin": {"type": "http", "scheme": "bearer", "description": "LSPT_ADMIN_TOKEN."},
}
IN_PATHS = {
    "name": ("digit", "A task: NAME, NAME@VERSION or NAME:ALIAS."),
    "version": ("1", "Of the task."),
    "alias": ("stable", "`default` is what the name alone stands for."),
}
OF_BENTOML = {  # its routes
    "/livez": {"get": {"summary": "The process lives", "responses": {"200": PLAIN}}},
    "/readyz": {
        "get": {
            "summary": "It can classify: the engine was checked, and batches have run",
            "responses": {"200": PLAIN, "503": PLAIN | {"description": "Not yet"}},
        }
    },
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The document of all that a server answers."""
    document = get_openapi(
        title=app.title,
        version=__version__,
        description=DESCRIPTION,
        routes=app.routes,
        servers=[{"url": "."}],
    )
    _, definitions = models_json_schema(
        [(model, "validation") for model in READ_BY_HAND], ref_template=REF
    )
    schemas = {**document["components"]["schemas"], **definitions["$defs"]}
    for name in (NEVER_SENT, "ValidationError"):
        schemas.pop(name, None)
    document["components"] = {"schemas": schemas, "securitySchemes": SCHEMES}
    for operations in document["paths"].values():
        for operation in operations.values():
            _complete(operation)
    document["paths"] |= OF_BENTOML
    return document


def _complete(operation: dict[str, Any]) -> None:
    refusals = operation["responses"]
    if NEVER_SENT in str(refusals.get("422")):
        del refusals["422"]
    if "409" in refusals:  # which only changes of what is served have
        operation["security"] = FOR_ADMIN
    elif "401" in refusals:
        operation["security"] = WITH_KEY
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            parameter["example"], parameter["description"] = IN_PATHS[parameter["name"]]
