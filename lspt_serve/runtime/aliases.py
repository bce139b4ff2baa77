"""aliases.json, beside the bundles: names for versions of tasks, {"flowers": {"stable": 3}}."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from lspt_serve.bundle import MAX_MANIFEST_BYTES, TASK_NAME
from lspt_serve.errors import BundleError, first_mistake
from lspt_serve.files import atomic_file, read_file

__all__ = ["ALIASES_FILE", "DEFAULT", "Aliases", "load_aliases", "save_aliases"]

ALIASES_FILE = "aliases.json"
DEFAULT = "default"  # what a task's bare name stands for; without it, the highest version
Name = Annotated[str, StringConstraints(pattern=f"^{TASK_NAME}$")]
Aliases = dict[Name, dict[Name, Annotated[int, Field(ge=1)]]]  # task -> alias -> version
ADAPTER = TypeAdapter(Aliases)


def load_aliases(folder: Path) -> Aliases:
    """Of a folder of bundles; none where it has no such file.

    Raises:
        BundleError: the file cannot be read, or does not hold what it should.
    """
    path = folder / ALIASES_FILE
    try:
        return ADAPTER.validate_json(read_file(path, max_bytes=MAX_MANIFEST_BYTES))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise BundleError(f"{path}: {first_mistake(error, whole='the file')}") from error


def save_aliases(folder: Path, aliases: Aliases) -> None:
    """For every server of the folder.

    Raises:
        BundleError: a name or version that none can have.
        OutputError: the file cannot be written.
    """
    try:
        ADAPTER.validate_python(aliases, strict=True)
    except ValidationError as error:
        raise BundleError(f"no alias can be made: {first_mistake(error)}") from error
    with atomic_file(folder / ALIASES_FILE) as path:
        path.write_bytes(ADAPTER.dump_json(aliases, indent=2) + b"\n")
