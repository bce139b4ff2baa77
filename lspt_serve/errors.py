"""Everything this package raises on purpose.

LSPTError (a ValueError: the caller can mend it)
├── BackboneError       a backbone that is unknown, unreadable or not a ViT
├── MethodError         a prompt method or one of its options that does not exist
├── DataError           training data that cannot be learned from
├── CompileError        a machine on which torch.compile does not work
├── OutOfMemoryError    a GPU that has too little memory just now
├── BundleError         a bundle that is missing, broken or meant for something else
├── GraphError          an exported graph that is missing, broken or fails its parity check
├── SweepError          a sweep's configuration, storage or results that cannot be used
├── OutputError         a result that could not be written
├── RunError            an unfinished run that cannot be gone on with
├── OptionError         options of a command that do not go together, or lack another
├── AddressError        an address that cannot be listened at
├── SettingError        a setting of the service or of a client that there is not
├── UnknownTaskError    a task that the server does not hold
├── OverloadedError     more work than the server takes at once
├── UnavailableError    a server, or one behind an engine, that does not answer
│   └── StorageError        a disk that does not give what lies on it
├── DeadlineError       an answer that came too late to be wanted
├── ServerError         a server's answer that none of the others says
├── UnauthorisedError   a caller who does not show what they must
└── ImageError          an image that cannot be classified
    ├── TooLargeError           more bytes or pixels than allowed
    ├── UnsupportedFormatError  not one of the accepted file formats
    └── UndecodableError        the right format, but the file is broken

Messages are one line: what was got, what was wanted, what to do. The command line prints them and
exits with code 2. The service maps what a caller can cause to 4xx answers, to 503 where it has too
much to do or lacks the server or disk behind it, to 504 past a deadline; the rest is a 500.
"""

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from heapq import nlargest
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = [
    "AddressError",
    "BackboneError",
    "BundleError",
    "CompileError",
    "DataError",
    "DeadlineError",
    "GraphError",
    "ImageError",
    "LSPTError",
    "MethodError",
    "OptionError",
    "OutOfMemoryError",
    "OutputError",
    "OverloadedError",
    "RunError",
    "ServerError",
    "SettingError",
    "StorageError",
    "SweepError",
    "TooLargeError",
    "UnauthorisedError",
    "UnavailableError",
    "UndecodableError",
    "UnknownTaskError",
    "UnsupportedFormatError",
    "first_line",
    "first_mistake",
    "name_some",
    "nearest",
    "printable",
]

MAX_NAME = 64  # letters, as a task's name has at most
MAX_COMPARED = 50


class LSPTError(ValueError):
    """Base of all errors that the caller can mend."""


class BackboneError(LSPTError):
    """A backbone that is unknown, unreadable or not a ViT."""


class MethodError(LSPTError):
    """A prompt method, or an option of one, that does not exist."""


class DataError(LSPTError):
    """Training data that cannot be learned from."""


class CompileError(LSPTError):
    """A machine on which torch.compile does not work."""


class OutOfMemoryError(LSPTError):
    """A GPU that has too little memory just now: no fault of what is trained."""


class BundleError(LSPTError):
    """A bundle that is missing, broken or meant for something else."""


class GraphError(LSPTError):
    """An exported graph that is missing, broken or fails its parity check."""


class SweepError(LSPTError):
    """A sweep's configuration, storage or results that cannot be used."""


class OutputError(LSPTError):
    """A result that could not be written."""


class RunError(LSPTError):
    """An unfinished run that cannot be gone on with."""


class OptionError(LSPTError):
    """Options of a command that do not go together, or lack another."""


class AddressError(LSPTError):
    """An address that cannot be listened at."""


class SettingError(LSPTError):
    """A setting of the service or of a client that there is not."""


class UnknownTaskError(LSPTError):
    """A task that the server does not hold."""


class OverloadedError(LSPTError):
    """More work than the server takes at once."""

    retry_after_s: float | None = None  # where a server said when to come again


class UnavailableError(LSPTError):
    """A server, or one behind an engine, that does not answer."""


class StorageError(UnavailableError):
    """A disk that does not give what lies on it; it may again."""


class DeadlineError(LSPTError):
    """An answer that came too late to be wanted."""


class ServerError(LSPTError):
    """A server's answer that none of the others says; `code` is the server's word for it."""

    code = "internal"


class UnauthorisedError(LSPTError):
    """A caller who does not show what they must."""


class ImageError(LSPTError):
    """An image that cannot be classified."""


class TooLargeError(ImageError):
    """More bytes or pixels than allowed."""


class UnsupportedFormatError(ImageError):
    """Not one of the accepted file formats."""


class UndecodableError(ImageError):
    """An accepted format, but the file is broken."""


def nearest(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """The known names most like `name`, as the tail of a message; empty when none is close.

    Of more than 50 those alone are compared that share the most pairs of letters with it: 5,000
    would take a tenth of a second. Nothing is close to more than 64 letters.
    """
    if len(name) > MAX_NAME:
        return ""
    names = list(known)
    if len(names) > MAX_COMPARED:
        pairs = {*pairwise(name)}

        def shared(known: str) -> int:
            return len(pairs.intersection(pairwise(known)))

        names = nlargest(MAX_COMPARED, names, key=shared)
    matches = get_close_matches(name, names, n=limit, cutoff=0.5)
    return f"; nearest: {', '.join(matches)}" if matches else ""


def first_line(error: BaseException) -> str:
    """The first line of another library's message; its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def first_mistake(error: "ValidationError", *, whole: str = "") -> str:
    """`WHERE: MESSAGE` of the first that pydantic found; `whole` names what has no part."""
    # without the rest of what pydantic tells of each of perhaps a million mistakes
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or whole
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def printable(text: str) -> str:
    """With what a terminal or a log would obey, such as escapes and ends of lines, spelt out."""
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in ("Cc", "Cs") else letter
        for letter in text
    )


def name_some(names: Iterable[object], *, limit: int = 5) -> str:
    """At most `limit` of the names, and how many were left out."""
    listed = [str(name) for name in names]
    more = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {more} more" if more > 0 else "")
