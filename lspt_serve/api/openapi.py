"""The bodies of requests, for OpenAPI: they are read by hand, for they come in several ways."""

from typing import Any

from pydantic import BaseModel

__all__ = ["body"]

FILE = {"type": "string", "format": "binary", "description": "A JPEG, PNG, BMP or GIF file."}
BASE64 = {"type": "string", "format": "byte", "description": "A file in base64."}


def body(model: type[BaseModel], field: str, *, several: bool) -> dict[str, Any]:
    """What `read_request` reads, as `openapi_extra` of a route."""
    fields = model.model_json_schema()

    def with_images(kind: dict[str, Any]) -> dict[str, Any]:
        images = {"type": "array", "items": kind, "minItems": 1} if several else kind
        return {
            "type": "object",
            "properties": {field: images} | fields["properties"],
            "required": [field, *fields["required"]],
        }

    parameters = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
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
                "application/json": {"schema": with_images(BASE64)},
                "application/octet-stream": {"schema": FILE},
                "image/*": {"schema": FILE},
            },
        },
    }
