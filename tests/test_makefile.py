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
WEIGHTS = "lspt_serve/models/weights/vit_digits_patch8_32.safetensors"
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make in PATH")


OWN = '{"backbone": {"source": "vit_digits_patch8_32"}}'
OTHER = '{"backbone": {"source": "vit_base_patch16_224"}}'


def clean(folder: Path, *, graph: str = OWN) -> set[str]:
    """What is left of the files in it."""
    for path in QUICKSTART:
        (folder / path).mkdir(parents=True, exist_ok=True)
        (folder / path / "file").touch()
    (folder / "graph" / "graph.json").write_text(graph)
    subprocess.run(["make", "--silent", "-f", MAKEFILE, "clean"], cwd=folder, check=True)
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_clean_deletes_what_the_quickstart_wrote(tmp_path: Path) -> None:
    assert clean(tmp_path) == set()


def test_clean_leaves_what_others_wrote(tmp_path: Path) -> None:
    own = {"bundles/birds", "bundles/birds.run", "build/cache", ".venv"}
    for path in own:
        (tmp_path / path).mkdir(parents=True)

    assert clean(tmp_path) == {*own, "bundles", "build"}


def test_a_graph_of_another_backbone_is_neither_deleted_nor_replaced(tmp_path: Path) -> None:
    graph = {"graph", "graph/graph.json", "graph/int8", "graph/int8/file"}
    assert clean(tmp_path, graph=OTHER) == graph

    made = subprocess.run(
        ["make", "-f", MAKEFILE, "-o", ".venv/train", "-W", WEIGHTS, "graph/graph.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 2
    assert "graph/ is of another backbone" in made.stderr
    assert (tmp_path / "graph" / "graph.json").read_text() == OTHER
