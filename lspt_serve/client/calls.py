"""What is asked of a server, and what becomes of its answers; nothing here sends anything."""

import random
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from os import PathLike
from typing import Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

import httpx
from pydantic import BaseModel, ValidationError

from lspt_serve.client.images import Image, read_image
from lspt_serve.errors import (
    DeadlineError,
    LSPTError,
    OverloadedError,
    ServerError,
    TooLargeError,
    UnauthorisedError,
    UnavailableError,
    UndecodableError,
    UnknownTaskError,
    UnsupportedFormatError,
    first_line,
)
from lspt_serve.schemas import (
    MAX_LABELS,
    MAX_PAIRS,
    Answer,
    ErrorAnswer,
    Item,
    ManyAnswer,
    Task,
    TaskList,
)

__all__ = [
    "ERRORS",
    "Call",
    "Group",
    "ask_answer",
    "ask_items",
    "ask_task",
    "ask_tasks",
    "converse",
    "error_code",
    "group_images",
    "place_items",
]

M = TypeVar("M", bound=BaseModel)
Outcome: TypeAlias = httpx.Response | httpx.RequestError

ERRORS: dict[str, type[LSPTError]] = {  # by the server's codes
    "overloaded": OverloadedError,
    "unavailable": UnavailableError,
    "deadline": DeadlineError,
    "unauthorised": UnauthorisedError,
    "unknown_task": UnknownTaskError,
    "too_large": TooLargeError,
    "unsupported_format": UnsupportedFormatError,
    "undecodable": UndecodableError,
}
BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
MAX_WAIT_S = 30.0  # a server that says more is not waited for
GROUP_BYTES = 8_000_000  # of several images in a request; servers take 20 MB


@dataclass(frozen=True)
class Call(Generic[M]):
    """A request and the model of its answer."""

    method: str
    path: str
    model: type[M]
    settings: Mapping[str, Any] = field(default_factory=dict)  # of httpx


@dataclass(frozen=True)
class Group:
    """Images of one request; `names` are their paths, None for those that are no file."""

    start: int  # images before it
    names: Sequence[str | None]
    images: Sequence[bytes]


def ask_tasks() -> Call[TaskList]:
    """GET /tasks."""
    return Call("GET", "tasks", TaskList)


def ask_task(name: str) -> Call[Task]:
    """GET /tasks/NAME."""
    return Call("GET", f"tasks/{quote(_text(name), safe='@:')}", Task)


def ask_answer(image: bytes, task: str, **asked: Any) -> Call[Answer]:
    """POST /classify, its task where a busy server looks before it reads the image."""
    form = {"data": _given(asked), "files": {"image": ("image", image)}}
    return Call("POST", f"classify?{urlencode({'task': _text(task)})}", Answer, form)


def ask_items(group: Group, tasks: Sequence[str], **asked: Any) -> Call[ManyAnswer]:
    """POST /classify_many."""
    files = [("images", ("image", image)) for image in group.images]
    form = {"data": {"tasks": [*map(_text, tasks)], **_given(asked)}, "files": files}
    return Call("POST", "classify_many", ManyAnswer, form)


def place_items(answer: ManyAnswer, group: Group) -> list[Item]:
    """Items of a group as those of all images."""
    return [
        item.model_copy(update={"image": group.start + item.image, "file": group.names[item.image]})
        for item in answer.items
    ]


def group_images(images: Iterable[Image], num_tasks: int, top_k: int) -> Iterator[Group]:
    """Images, read one by one, in requests that a server takes; raises what `read_image` raises."""
    most = min(MAX_PAIRS, MAX_LABELS // max(1, top_k)) // max(1, num_tasks)
    start, names, held = 0, list[str | None](), list[bytes]()
    for image in images:
        data = read_image(image)
        if held and (len(held) >= most or sum(map(len, held)) + len(data) > GROUP_BYTES):
            yield Group(start, names, held)
            start, names, held = start + len(held), [], []
        names.append(str(image) if isinstance(image, str | PathLike) else None)
        held.append(data)
    if held:
        yield Group(start, names, held)


def converse(
    call: Call[M], url: str, *, timeout_s: float, retries: int
) -> Generator[float, Outcome, M]:
    """Yields how many seconds to wait before the request is sent (again); is sent its outcome.

    Sent again is only what a server was too busy for, and only where it said when to come again.

    Raises:
        LSPTError: what the server refused, or UnavailableError or DeadlineError for no answer.
    """
    wait_s = 0.0
    for attempt in range(retries + 1):
        outcome = yield wait_s
        if isinstance(outcome, httpx.RequestError):
            raise _no_answer(outcome, url, timeout_s) from outcome
        if outcome.is_success:
            return _parse(outcome, call.model, url)
        error, after_s = _refusal(outcome, url), _retry_after_s(outcome)
        if after_s is None or after_s > MAX_WAIT_S or attempt == retries:
            raise error
        wait_s = min(after_s * 2**attempt, MAX_WAIT_S) * random.uniform(1, 1.5)
    raise AssertionError("retries is at least 0")


def error_code(error: LSPTError) -> str:
    """The server's word for an error, or `unreadable` for an image that was never sent."""
    if isinstance(error, ServerError):
        return error.code
    codes = (code for code, kind in ERRORS.items() if isinstance(error, kind))
    return next(codes, "unreadable")


def _text(task: str) -> str:
    """Raises UnknownTaskError for what no request can hold, as a terminal can give it."""
    try:
        task.encode()
    except UnicodeEncodeError as error:
        raise UnknownTaskError(f"unknown task {task!r}") from error
    return task


def _given(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in asked.items() if value is not None}


def _parse(response: httpx.Response, model: type[M], url: str) -> M:
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise ServerError(
            f"{url} answered what is no {model.__name__}; is it a lspt-serve of this version?"
        ) from error


def _refusal(response: httpx.Response, url: str) -> LSPTError:
    status = response.status_code
    try:
        failure = ErrorAnswer.model_validate_json(response.content).error
    except ValidationError:  # of a proxy before it, say
        error: LSPTError = ServerError(f"{url} answered {status} {response.reason_phrase}")
        if status in BUSY:
            error = OverloadedError(str(error))
    else:
        kind = ERRORS.get(failure.code, OverloadedError if status == BUSY[0] else ServerError)
        error = kind(failure.message)
        error.add_note(f"request {failure.request_id}")
        if isinstance(error, ServerError):
            error.code = failure.code
    if isinstance(error, OverloadedError):
        error.retry_after_s = _retry_after_s(response)
    return error


def _retry_after_s(response: httpx.Response) -> float | None:
    """None: do not come again. A date, which HTTP allows too, is not understood."""
    given = response.headers.get("Retry-After", "")
    plain = given.replace(".", "", 1)
    if response.status_code not in BUSY or not (plain.isascii() and plain.isdecimal()):
        return None
    return float(given)


def _no_answer(error: httpx.RequestError, url: str, timeout_s: float) -> LSPTError:
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return DeadlineError(f"{url} gave no answer in {timeout_s:g} s")
    return UnavailableError(f"{url} does not answer: {first_line(error)}")
