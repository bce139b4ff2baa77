"""Who may do what: an admin token to change what is served, keys to use some of the tasks.

Both come as `Authorization: Bearer ...`. What is compared is a digest, in constant time.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from pydantic import (
    BaseModel,
    ConfigDict,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from starlette.exceptions import HTTPException

from lspt_serve.errors import SettingError, UnauthorisedError, first_mistake
from lspt_serve.runtime import Classifier, PromptStore

__all__ = [
    "Access",
    "CallersClassifier",
    "Key",
    "StoreToChange",
    "check_sees_all",
    "get_classifier",
    "get_store",
    "load_access",
]

EVERY_TASK = "*"


class Key(BaseModel):
    """A key by its digest, and the tasks that it is for, by names or patterns like `birds-*`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    tasks: tuple[str, ...]

    def may_use(self, task: str) -> bool:
        return any(fnmatchcase(task, pattern) for pattern in self.tasks)


@dataclass(frozen=True)
class Access:
    """Who may do what at a server.

    Args:
        admin_token: None: nobody changes what is served. Who has it may use every task.
        keys: by the names of those who have them; None: everybody may use every task.
    """

    admin_token: SecretStr | None = None
    keys: Mapping[str, Key] | None = None

    def is_admin(self, token: bytes) -> bool:
        if self.admin_token is None:
            return False
        wanted = self.admin_token.get_secret_value().encode()
        return _is_digest(token, hashlib.sha256(wanted).hexdigest())

    def find(self, token: bytes) -> Key | None:
        """The key that the token is; every one is looked at, whichever it is."""
        keys = (self.keys or {}).values()
        digest = hashlib.sha256(token).hexdigest()
        found = [key for key in keys if token and hmac.compare_digest(digest, key.sha256)]
        return found[0] if found else None


KEYS = TypeAdapter(dict[str, Key])


def load_access(admin_token: SecretStr | None, keys: Path | None) -> Access:
    """Who may do what.

    Args:
        keys: a file of {"NAME": {"sha256": HEX, "tasks": ["flowers", "birds-*"]}}.

    Raises:
        SettingError: the file cannot be read, or does not hold what it should.
    """
    if keys is None:
        return Access(admin_token)
    try:
        return Access(admin_token, KEYS.validate_json(keys.read_bytes()))
    except OSError as error:
        raise SettingError(f"LSPT_KEYS is {keys}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        mistake = first_mistake(error, whole="the file")
        raise SettingError(f"LSPT_KEYS is {keys}: {mistake}") from error


async def get_store(request: Request) -> PromptStore:
    """A dependency of every route that changes what is served: the store, for who may do that.

    Raises:
        HTTPException: 404, no token was given to the server: there are no such routes.
        UnauthorisedError: the caller does not have it.
    """
    access = _access(request)
    if access.admin_token is None:
        raise HTTPException(404, "Not Found")
    if not access.is_admin(_token(request)):
        raise UnauthorisedError("wanted Authorization: Bearer with the server's admin token")
    classifier: Classifier = request.app.state.classifier
    return classifier.store


async def get_classifier(request: Request) -> Classifier:
    """A dependency of every route that uses tasks: the app's classifier, with the caller's tasks.

    Raises:
        UnauthorisedError: there are keys, and the caller has none of them.
    """
    classifier: Classifier = request.app.state.classifier
    access, token = _access(request), _token(request)
    if access.keys is None or access.is_admin(token):
        return classifier
    if key := access.find(token):
        return classifier.only(key.may_use)
    raise UnauthorisedError("wanted Authorization: Bearer with a key of this server")


async def check_sees_all(request: Request) -> None:
    """A dependency of what names any task: for who may use every one.

    Raises:
        UnauthorisedError: there are keys, and the caller has none that is for `*`.
    """
    access, token = _access(request), _token(request)
    if access.keys is None or access.is_admin(token):
        return
    key = access.find(token)
    if key is None or EVERY_TASK not in key.tasks:
        raise UnauthorisedError("wanted Authorization: Bearer with a key for all tasks (*)")


CallersClassifier = Annotated[Classifier, Depends(get_classifier)]
StoreToChange = Annotated[PromptStore, Depends(get_store)]


def _access(request: Request) -> Access:
    access: Access = request.app.state.access
    return access


def _token(request: Request) -> bytes:
    """Of the Authorization header; empty where there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip().encode("latin-1") if scheme.lower() == "bearer" else b""


def _is_digest(token: bytes, sha256: str) -> bool:
    return bool(token) and hmac.compare_digest(hashlib.sha256(token).hexdigest(), sha256)
