"""unloaded.json, beside the bundles: names of tasks that are not to be served, ["flowers"]."""

from pathlib import Path

from pydantic import TypeAdapter

from lspt_serve.manifest import TaskName
from lspt_serve.runtime.folder_file import load_folder_file, save_folder_file

__all__ = ["UNLOADED_FILE", "load_unloaded", "save_unloaded"]

UNLOADED_FILE = "unloaded.json"
ADAPTER = TypeAdapter(list[TaskName])


def load_unloaded(folder: Path) -> frozenset[str]:
    """Of a folder of bundles; none where it has no such file.

    Raises:
        BundleError: the file cannot be read, or does not hold what it should.
    """
    names: list[str] = load_folder_file(folder / UNLOADED_FILE, ADAPTER, missing=[])
    return frozenset(names)


def save_unloaded(folder: Path, names: frozenset[str]) -> None:
    """For every server of the folder; raises OutputError."""
    save_folder_file(folder / UNLOADED_FILE, ADAPTER, sorted(names))
