"""lspt load | unload | alias: change what a running server serves."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from lspt_serve.cli.console import Json, print_json, print_note
from lspt_serve.errors import OptionError, ServerError, UnavailableError
from lspt_serve.manifest import check_task_name

if TYPE_CHECKING:
    from httpx import Client

__all__ = ["alias", "load", "unload"]

TOKEN = "LSPT_ADMIN_TOKEN"
TIMEOUT_S = 30.0
Task = Annotated[str, typer.Argument(help="Its name.")]
Url = Annotated[str, typer.Option(help="Where the server listens.")]
URL = "http://127.0.0.1:3000"


def load(task: Task, url: Url = URL, as_json: Json = False) -> None:
    """Have a server look at its folder of bundles now, and serve a task again that was unloaded.

    What it does not serve of the folder is told. Wants the server's LSPT_ADMIN_TOKEN in the
    environment.

    Example:  lspt load flowers
    """
    check_task_name(task)
    refused: dict[str, str] = {}
    with _connect(url) as ask:  # once: of several workers the one that has looked is asked again
        ask("POST", f"/v2/repository/models/{task}/load")
        try:
            refused = ask("GET", "/tasks")["refused"]
        except (ServerError, UnavailableError) as error:
            print_note(f"what is not served is not known: {error}")
    for name, reason in refused.items():
        print_note(f"{name} is not served: {reason}")
    record = {"task": task, "state": "READY", "refused": refused}
    _report(record, f"{task} is served", as_json=as_json)


def unload(task: Task, url: Url = URL, as_json: Json = False) -> None:
    """Have all servers of a folder of bundles serve a task no more, until it is loaded.

    Its bundles stay where they are. Wants the server's LSPT_ADMIN_TOKEN in the environment.

    Example:  lspt unload flowers
    """
    check_task_name(task)
    with _connect(url) as ask:
        ask("POST", f"/v2/repository/models/{task}/unload")
    _report({"task": task, "state": "UNAVAILABLE"}, f"{task} is unloaded", as_json=as_json)


def alias(
    name: Annotated[str, typer.Argument(metavar="NAME:ALIAS", help="flowers:stable, say.")],
    version: Annotated[
        int | None, typer.Argument(help="What it is to stand for.", min=1, show_default=False)
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Take the alias away.")] = False,
    url: Url = URL,
    as_json: Json = False,
) -> None:
    """Name a version of a task; NAME:default is what the bare name stands for.

    Wants the server's LSPT_ADMIN_TOKEN in the environment.

    Example:  lspt alias flowers:stable 3
    """
    task, colon, short = name.partition(":")
    if not (task and colon and short):
        raise OptionError(f"{name!r} is not of the form NAME:ALIAS")
    if delete == (version is not None):
        raise OptionError("give a version or --delete, one of them")
    check_task_name(task)
    path = f"/tasks/{task}/aliases/{quote(short, safe='', errors='surrogateescape')}"
    with _connect(url) as ask:
        record = ask("DELETE" if delete else "PUT", path, None if delete else version)
    stands = "is gone" if delete else f"is version {version}"
    _report(record, f"{name} {stands}", as_json=as_json)


@contextmanager
def _connect(url: str) -> Iterator[Callable[..., Any]]:
    """What asks a server: by one connection, so that of several workers one answers all.

    Raises OptionError: there is no token, or the address is none.
    """
    import httpx

    if not (token := os.environ.get(TOKEN)):
        raise OptionError(f"{TOKEN} is not set; give the token that the server was started with")
    if not (token.isascii() and token.isprintable() and token == token.strip()):
        raise OptionError(
            f"{TOKEN} holds what no header may; wanted printable ASCII, without blanks at its ends"
        )
    headers = {"Authorization": f"Bearer {token}"}
    try:
        client = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise OptionError(f"--url {url!r}: {error}; wanted http://HOST:PORT") from error
    with client:
        yield partial(_ask, client, url)


def _ask(client: "Client", url: str, method: str, path: str, version: int | None = None) -> Any:
    """The server's answer.

    Raises:
        OptionError: the address is none.
        UnavailableError: no server answers.
        ServerError: the server does not take it.
    """
    import httpx

    try:
        answer = client.request(
            method, path, json=None if version is None else {"version": version}
        )
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
        raise OptionError(f"--url {url!r}: {error}; wanted http://HOST:PORT") from error
    except httpx.HTTPError as error:
        raise UnavailableError(f"no server answers at {url}: {error}") from error
    if answer.status_code == 200:
        with suppress(ValueError):  # no JSON, as of a proxy's page
            return answer.json()
    raise ServerError(f"{url}: {_explain(answer.status_code, answer.text)}")


def _explain(status: int, text: str) -> str:
    """What the server said, in one line, and what to do where it cannot know."""
    try:
        error = json.loads(text)["error"]
        message = str(error if isinstance(error, str) else error["message"])
    except (ValueError, KeyError, TypeError):
        return f"answered {status}, and not as lspt serve does"
    if status == 401:
        return f"{TOKEN} is not the server's token"
    if status == 404 and message == "Not Found":
        return f"the server takes no changes: it was started without {TOKEN}"
    return message


def _report(record: Any, text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(record)
    else:
        print(text)
