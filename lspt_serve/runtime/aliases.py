"""aliases.json, beside the bundles: names for versions of tasks, {"flowers": {"stable": 3}}."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from lspt_serve.errors import BundleError, first_mistake
from lspt_serve.manifest import TaskName, TaskVersion
from lspt_serve.runtime.folder_file import load_folder_file, save_folder_file

__all__ = ["ALIASES_FILE", "DEFAULT", "Aliases", "load_aliases", "save_aliases"]

ALIASES_FILE = "aliases.json"
DEFAULT = "default"  # what a task's bare name stands for; without it, the highest version
Aliases = dict[TaskName, dict[TaskName, TaskVersion]]  # task -> alias -> version
ADAPTER = TypeAdapter(Aliases)


def load_aliases(folder: Path) -> Aliases:
    """Of a folder of bundles; none where it has no such file.

    Raises:
        BundleError: the file cannot be read, or does not hold what it should.
    """
    return load_folder_file(folder / ALIASES_FILE, ADAPTER, missing={})


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
    save_folder_file(folder / ALIASES_FILE, ADAPTER, aliases)
