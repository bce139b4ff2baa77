"""What make does, where that is more than to call another program."""

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).resolve().parents[1] / "Makefile"
QUICKSTART = (
    *(f"bundles/{task}{run}" for task in ("digit", "parity", "loop") for run in ("", ".run")),
    "build/digits/digit",
    "build/linear/digit",
    "graph/int8",
)
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make in PATH")


def clean(folder: Path) -> set[str]:
    """What is left of the files in it."""
    for path in QUICKSTART:
        (folder / path).mkdir(parents=True, exist_ok=True)
        (folder / path / "file").touch()
    subprocess.run(["make", "--silent", "-f", MAKEFILE, "clean"], cwd=folder, check=True)
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_clean_deletes_what_the_quickstart_wrote(tmp_path: Path) -> None:
    assert clean(tmp_path) == set()


def test_clean_leaves_what_others_wrote(tmp_path: Path) -> None:
    own = {"bundles/birds", "bundles/birds.run", "build/cache", ".venv"}
    for path in own:
        (tmp_path / path).mkdir(parents=True)

    assert clean(tmp_path) == {*own, "bundles", "build"}
