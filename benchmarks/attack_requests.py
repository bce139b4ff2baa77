"""Requests that mean harm, over raw connections: names that lead out, nests, bombs, lies."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from attack_images import create_bombs
from proof_client import Caller

__all__ = [
    "NAMES",
    "Answered",
    "Attack",
    "all_attacks",
    "build",
    "explain",
    "nests",
    "send_all",
    "traversals",
]

NAMES = (
    *("../secret", "..", ".", "/etc/passwd", "task00/../../secret", "....//secret", "~root"),
    *("..\\secret", "C:\\secret", "task00\x00", "task00@../../secret", "task00:../../secret"),
    *(
        "%2e%2e%2fsecret",
        "secret",
        "\u202etask00",
        "a" * 5000,
        "task00@1@1",
        "task00:" + "b" * 5000,
    ),
)
NESTED, DEEP = 1000, 100_000
OPENERS = (("[", "]"), ('{"a":', "}"), ('{"image":[', "]}"))
METHODS = ("get", "put", "post", "delete", "patch")
FILLED = {"name": "task00", "alias": "stable", "version": "1"}


@dataclass(frozen=True)
class Attack:
    """A request as it goes over the wire, and what it is called."""

    name: str
    request: bytes


@dataclass
class Answered:
    """Answers by status (0: none), and the names of attacks that were answered with 5xx."""

    statuses: Counter[int] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)  # whose answer has a word that it must not have


def build(
    method: str, target: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None
) -> bytes:
    """An HTTP/1.1 request whose target is sent as it is."""
    known = {"Host": "localhost", "Content-Length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in known.items())
    return f"{method.upper()} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def traversals(image: bytes, token: str) -> Iterator[Attack]:
    """Each name in each place that takes a task's, quoted whole and with its slashes left."""
    admin = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    picture = {"Content-Type": "image/jpeg"}
    for name in NAMES:
        for own in {quote(name, safe=""), quote(name, safe="/.:@%")}:
            short = own[:40]
            yield Attack(f"GET /tasks/{short}", build("GET", f"/tasks/{own}"))
            yield Attack(
                f"classify {short}", build("POST", f"/classify?task={own}", image, headers=picture)
            )
            yield Attack(f"GET v2 {short}", build("GET", f"/v2/models/{own}"))
            load = f"/v2/repository/models/{own}/load"
            yield Attack(f"load {short}", build("POST", load, b"{}", headers=admin))
            alias = f"/tasks/{own}/aliases/stable"
            yield Attack(f"alias {short}", build("PUT", alias, b'{"version": 1}', headers=admin))
            page = f"/ui/{own}"
            yield Attack(f"page {short}", build("GET", page))
            yield Attack(f"root {short}", build("GET", f"/{own}"))


def nests(document: Mapping[str, Any], token: str) -> Iterator[Attack]:
    """JSON of a thousand levels, and of a hundred thousand, at every route with every method."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    for path in document["paths"]:
        own = path
        for name, value in FILLED.items():
            own = own.replace(f"{{{name}}}", value)
        for opener, closer in OPENERS:
            for levels in (NESTED, DEEP):
                body = (opener * levels + "1" + closer * levels).encode()
                for method in METHODS if levels == NESTED else ("post", "put"):
                    name = f"{method} {path}, {levels} x {opener}"
                    yield Attack(name, build(method, own, body, headers=headers))


def bombs() -> Iterator[Attack]:
    """Images, as the body itself and in JSON."""
    for name, data in create_bombs().items():
        picture = {"Content-Type": "image/png"}
        yield Attack(name, build("POST", "/classify?task=task00", data, headers=picture))


def lies(image: bytes) -> Iterator[Attack]:
    """Requests that are not what they say."""
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    parts = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' for _ in range(5000)
    )
    target = "/classify?task=task00"
    yield Attack("5,000 fields", build("POST", target, parts + b"--x--\r\n", headers=form))
    yield Attack("form without end", build("POST", target, parts[:1000], headers=form))
    yield Attack(
        "form without boundary",
        build("POST", target, b"x", headers={"Content-Type": "multipart/form-data"}),
    )
    yield Attack("5,000 query fields", build("POST", target + "&task=a" * 5000, image))
    charset = {"Content-Type": "multipart/form-data; boundary=x; charset=nothing"}
    yield Attack(
        "unknown charset", build("POST", target, parts[:60] + b"--x--\r\n", headers=charset)
    )
    for text in (
        '{"image": "%%%", "task": "task00"}',
        '{"image": null}',
        '"x"',
        "\ufeff{}",
        "NaN",
        "1e999",
    ):
        json_type = {"Content-Type": "application/json"}
        yield Attack(f"JSON {text}", build("POST", "/classify", text.encode(), headers=json_type))
    for value in ("-1", "1e309", "nan", "inf", "\x00", "9" * 400, "true"):
        own = f"{target}&top_k={quote(value)}&threshold={quote(value)}"
        yield Attack(
            f"numbers {value[:20]}",
            build("POST", own, image, headers={"Content-Type": "image/png"}),
        )


async def send_all(
    host: str, port: int, attacks: Iterable[Attack], *, secrets: Sequence[bytes] = ()
) -> Answered:
    """One after the other; what closes its connection without an answer counts as status 0."""
    answered = Answered()
    for attack in attacks:
        caller = Caller(host, port, timeout_s=60)
        try:
            reply = await caller.ask(attack.request)
        except (OSError, EOFError, TimeoutError, ValueError):
            answered.statuses[0] += 1
            continue
        finally:
            caller.close()
        answered.statuses[reply.status] += 1
        if reply.status >= 500:
            answered.failed.append(f"{attack.name}: {reply.status}")
        if reply.status < 400 and any(secret in reply.body for secret in secrets):
            answered.leaked.append(attack.name)
    return answered


def all_attacks(document: Mapping[str, Any], image: bytes, token: str) -> list[Attack]:
    return [*traversals(image, token), *nests(document, token), *bombs(), *lies(image)]


def explain(answered: Answered) -> str:
    return json.dumps({str(status): count for status, count in sorted(answered.statuses.items())})
