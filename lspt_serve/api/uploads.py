"""What a request brings, in whichever way: images, and the fields that say what to do with them."""

import base64
import binascii
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar, get_origin

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.requests import ClientDisconnect

from lspt_serve.api.bodies import parse_json, read_body
from lspt_serve.api.disconnect import CLIENT_GONE
from lspt_serve.errors import LSPTError, nearest

__all__ = ["Upload", "malformed", "read_request"]

FORM = "multipart/form-data"
CHARSETS = (b"utf-8", b"us-ascii")  # Python has some that take minutes for a megabyte
MAX_PARTS = 1000  # of a form, files and texts of a list; of a list in JSON
MAX_FILE_NAME = 255  # letters, which an answer repeats for each task
MultiPartParser.spool_max_size = sys.maxsize  # in memory: that is bounded, and a disk may be full
M = TypeVar("M", bound=BaseModel)
Fields = Iterable[tuple[str, Any]]


@dataclass(frozen=True)
class Upload:
    """The bytes of an image file, and its name where it was sent with one."""

    data: bytes
    file: str | None = None


async def read_request(request: Request, model: type[M], field: str) -> tuple[list[Upload], M]:
    """The images of a request, at least one, and its other fields; those in the query count too.

    A form's files are called `field`, and so are the base64 texts in JSON; any other body is one
    image itself.

    Raises:
        RequestValidationError: something is missing, unknown or not what it should be.
        HTTPException: a body of another type, or that ends too early, or is too long.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == FORM:
        most = MAX_PARTS + len(model.model_fields)  # of one that is a list, and the others
        uploads, fields = await _read_form(request, field, max_fields=most)
    elif content_type == "application/json":
        uploads, fields = _read_json(await read_body(request), field)
    elif content_type == "application/octet-stream" or content_type.startswith("image/"):
        uploads, fields = [Upload(await read_body(request))], []
    elif content_type == "application/x-www-form-urlencoded":
        uploads, fields = [], []  # it holds no files
    else:
        raise HTTPException(
            415,
            f"Content-Type {content_type!r}; wanted multipart/form-data, application/json, "
            "image/* or application/octet-stream",
        )
    if not uploads:
        raise malformed(field, "missing")
    return uploads, _check(model, chain(request.query_params.multi_items(), fields))


def malformed(item: str, reason: str) -> RequestValidationError:
    """The field that is to blame, and why: 400."""
    return RequestValidationError([{"loc": ("body", item), "msg": reason, "type": "malformed"}])


async def _read_form(
    request: Request, field: str, *, max_fields: int
) -> tuple[list[Upload], Fields]:
    uploads, fields = [], []
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8")
    if charset.lower() not in CHARSETS:
        raise HTTPException(415, f"a form in {charset[:64].decode('latin-1')!r}; wanted utf-8")
    try:
        async with request.form(max_files=MAX_PARTS, max_fields=max_fields) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile) != (name == field):
                    raise malformed(name, f"wanted {'a file' if name == field else 'text'}")
                if isinstance(value, UploadFile):
                    name_of_file = value.filename and value.filename[:MAX_FILE_NAME]
                    uploads.append(Upload(await value.read(), name_of_file))
                else:
                    fields.append((name, value))
    except ClientDisconnect:
        raise HTTPException(CLIENT_GONE, "the caller left before all was read") from None
    except LSPTError:  # the server has enough to do
        raise
    except ValueError as error:  # bytes that are not of the charset
        raise HTTPException(400, "there was an error parsing the body") from error
    return uploads, fields


def _read_json(body: bytes, field: str) -> tuple[list[Upload], Fields]:
    given = parse_json(body)
    if not isinstance(given, dict):
        raise HTTPException(400, "the body is not a JSON object")
    texts = _to_list(field, given.pop(field, []))
    return [Upload(_from_base64(text, field)) for text in texts], _spread(given)


def _spread(given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Lists as fields that come several times, as in a form."""
    for name, value in given.items():
        yield from ((name, each) for each in _to_list(name, value))


def _to_list(name: str, value: Any) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    if len(values) > MAX_PARTS:
        raise malformed(name[:64], f"{len(values)} of them; at most {MAX_PARTS}")
    return values


def _from_base64(text: object, field: str) -> bytes:
    if not isinstance(text, str):
        raise malformed(field, "wanted base64 text")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise malformed(field, "wanted base64 text; a URL is not fetched") from None


def _check(model: type[M], fields: Fields) -> M:
    given: dict[str, Any] = {}
    for name, value in fields:
        if name not in model.model_fields:
            raise malformed(name[:64], f"unknown field{nearest(name[:64], model.model_fields)}")
        if get_origin(model.model_fields[name].annotation) is list:
            given.setdefault(name, []).append(value)
        elif name in given:
            raise malformed(name, "given twice")
        else:
            given[name] = value
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
