"""The OpenAPI document: what the routes say of themselves, and what is known of them here."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from lspt_serve import __version__
from lspt_serve.api.aliases import AliasVersion
from lspt_serve.api.failures import PLAIN, REQUEST_ID
from lspt_serve.api.openapi import OK_TEXT
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
WITH_KEY: list[dict[str, list[str]]] = [  # nothing where there are no LSPT_KEYS
    {},
    {"key": []},
    {"admin": []},
]
SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": "One of LSPT_KEYS."},
    "admin": {"type": "http", "scheme": "bearer", "description": "LSPT_ADMIN_TOKEN."},
}
TEXT = {"type": "string"}
IN_PATHS = {
    "name": ("digit", "Of a task."),
    "version": ("1", "Of the task."),
    "alias": ("stable", "`default` is what the name alone stands for."),
}
REFERENCE = "A task: NAME, NAME@VERSION or NAME:ALIAS."
ID = {"schema": TEXT, "description": "The request's, or one that was made for it."}
GIVEN_ID = {
    "name": REQUEST_ID,
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": f"^{PLAIN.pattern}$"},
    "description": "For the log and the answer; one that does not fit is replaced.",
}
OF_BENTOML = {  # its routes
    "/livez": {"get": {"summary": "The process lives", "responses": {"200": OK_TEXT}}},
    "/readyz": {
        "get": {
            "summary": "It can classify: the engine was checked, and batches have run",
            "responses": {"200": OK_TEXT, "503": OK_TEXT | {"description": "Not yet"}},
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
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _complete(path, operation)
    document["paths"] |= OF_BENTOML
    return document


def _complete(path: str, operation: dict[str, Any]) -> None:
    answers = operation["responses"]
    if NEVER_SENT in str(answers.get("422")):
        del answers["422"]
    if "409" in answers:  # which only changes of what is served have
        operation["security"] = FOR_ADMIN
    elif "401" in answers:
        operation["security"] = WITH_KEY
    for answer in answers.values():
        answer.setdefault("headers", {})[REQUEST_ID] = ID
    takes_reference = "{version}" not in path and "409" not in answers
    parameters = operation.setdefault("parameters", [])
    for parameter in parameters:
        _complete_parameter(parameter, takes_reference=takes_reference)
    parameters.append(GIVEN_ID)


def _complete_parameter(parameter: dict[str, Any], *, takes_reference: bool) -> None:
    name = parameter["name"]
    if parameter["in"] == "path":
        parameter["example"], parameter["description"] = IN_PATHS[name]
        if name == "name" and takes_reference:
            parameter["description"] = REFERENCE
        if "anyOf" in parameter["schema"]:  # None, on the route that has none in its path
            parameter["schema"] = TEXT
    elif name == "version":
        parameter["description"] = "Of the task; as NAME@VERSION says it."
