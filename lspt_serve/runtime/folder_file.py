"""Small JSON files beside the bundles, which all servers of a folder read."""

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from lspt_serve.bundle import MAX_MANIFEST_BYTES
from lspt_serve.errors import BundleError, first_mistake
from lspt_serve.files import atomic_file, check_inside, read_file

__all__ = ["load_folder_file", "save_folder_file"]

T = TypeVar("T")


def load_folder_file(path: Path, adapter: TypeAdapter[T], *, missing: T) -> T:
    """What the file holds; `missing` where there is none.

    Raises:
        BundleError: the file cannot be read, or does not hold what it should.
    """
    try:
        check_inside(path, path.parent)
        return adapter.validate_json(read_file(path, max_bytes=MAX_MANIFEST_BYTES))
    except FileNotFoundError:
        return missing
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise BundleError(f"{path}: {first_mistake(error, whole='the file')}") from error


def save_folder_file(path: Path, adapter: TypeAdapter[T], content: T) -> None:
    """For every server of the folder; raises OutputError."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(adapter.dump_json(content, indent=2) + b"\n")
