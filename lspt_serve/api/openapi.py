"""What the routes tell OpenAPI of themselves: bodies, which are read by hand, and refusals."""

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from lspt_serve.schemas import EXAMPLE_ID, ErrorAnswer

__all__ = [
    "EXAMPLE_IMAGE",
    "IMAGES_REFUSED",
    "OK_TEXT",
    "V2Error",
    "body",
    "json_body",
    "responses",
]

FILE = {"type": "string", "format": "binary", "description": "A JPEG, PNG, BMP or GIF file."}
BASE64 = {"type": "string", "format": "byte", "description": "A file in base64."}
OK_TEXT = {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}
EXAMPLE_IMAGE = (  # a white pixel, as PNG
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mP4DwABAQEAHLCMmQAAAABJRU5ErkJggg=="
)
IMAGES_REFUSED = (400, 401, 404, 413, 415, 422, 503, 504)
EXAMPLES = {  # of refusals: code, message and blamed field, by status
    400: ("malformed", "top_k: Input should be greater than or equal to 1", "top_k"),
    401: ("unauthorised", "wanted Authorization: Bearer with a key of this server", None),
    404: ("unknown_task", "unknown task 'digits'; nearest: digit", "task"),
    409: ("conflict", "a file in the folder of bundles is broken; see the log", None),
    413: ("too_large", "image of 100000 x 100000 pixels; at most 50000000", "image"),
    415: (
        "unsupported_format",
        "7 bytes that are no image of the accepted formats: JPEG, PNG, BMP, GIF",
        "image",
    ),
    422: ("undecodable", "image does not decode: image file is truncated", "image"),
    503: ("overloaded", "256 images wait already; try again later", None),
    504: ("deadline", "the deadline passed before it was its turn", None),
}
HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"const": "Bearer"}}},
    503: {
        "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait, at least."}
    },
}


class V2Error(BaseModel):
    """What every refused request under /v2 gets."""

    error: str


def responses(*statuses: int, of_v2: bool = False) -> dict[int | str, dict[str, Any]]:
    """Refusals by status, each with an example."""
    return {status: _refusal(status, of_v2=of_v2) for status in statuses}


def _refusal(status: int, *, of_v2: bool) -> dict[str, Any]:
    code, message, item = EXAMPLES[status]
    error = {"code": code, "message": message, "item": item, "request_id": EXAMPLE_ID}
    refusal: dict[str, Any] = {
        "model": V2Error if of_v2 else ErrorAnswer,
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"example": {"error": message if of_v2 else error}}},
    }
    if status in HEADERS:
        refusal["headers"] = HEADERS[status]
    return refusal


def body(model: type[BaseModel], field: str, *, several: bool) -> dict[str, Any]:
    """What `read_request` reads, as `openapi_extra` of a route."""
    fields = model.model_json_schema()
    given = {name: schema["examples"][0] for name, schema in _required(fields).items()}
    example = {field: [EXAMPLE_IMAGE] if several else EXAMPLE_IMAGE, **given}

    def with_images(kind: dict[str, Any]) -> dict[str, Any]:
        images = {"type": "array", "items": kind, "minItems": 1} if several else kind
        return {
            "type": "object",
            "properties": {field: images} | fields["properties"],
            "required": [field, *fields["required"]],
            "additionalProperties": False,
        }

    parameters = [
        {
            "name": name,
            "in": "query",
            "required": False,
            # a client that filled in both would give a field twice, which is refused
            "schema": {key: value for key, value in schema.items() if key != "default"},
            "description": "Where the body is an image itself.",
        }
        for name, schema in fields["properties"].items()
    ]
    return {
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": with_images(FILE)},
                "application/json": {"schema": with_images(BASE64), "example": example},
                "application/octet-stream": {"schema": FILE},
                "image/*": {"schema": FILE},
            },
        },
    }


def _required(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: fields["properties"][name] for name in fields["required"]}


def json_body(model: type[BaseModel], example: Any, *, required: bool = True) -> dict[str, Any]:
    """A body of a model that is read by hand; `describe` has its schema (see document.py)."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": required, "content": content}}
