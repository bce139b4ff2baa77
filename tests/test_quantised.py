import re
from pathlib import Path

import pytest

from lspt_serve.errors import GraphError
from lspt_serve.graph import GRAPH_FILE
from lspt_serve.quantised import INT8, INT8_GRAPH, INT8_SPEC, Quantised, find_int8, hash_graph


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A folder with an int8 twin, of bytes that stand for a graph."""
    folder = tmp_path / "graph"
    (folder / INT8).mkdir(parents=True)
    (folder / GRAPH_FILE).write_bytes(b"a graph")
    Quantised(graph_sha256=hash_graph(folder), calibrated_on="flowers", num_images=8).save(
        folder / INT8
    )
    return folder


def test_twin_of_the_very_graph_is_found(graph: Path) -> None:
    assert find_int8(graph) == graph / INT8 / INT8_GRAPH


def test_graph_without_a_twin_is_told_the_command_that_makes_one(graph: Path) -> None:
    (graph / INT8 / INT8_SPEC).unlink()

    made = re.escape(f"make it with: lspt quantise --graph {graph} --bundle BUNDLE --data DATA")
    with pytest.raises(GraphError, match=rf"int8\.json: cannot be read: No such file.*{made}$"):
        find_int8(graph)


@pytest.mark.parametrize("changed", [GRAPH_FILE, f"{GRAPH_FILE}.data"])
def test_twin_of_another_graph_is_refused(graph: Path, changed: str) -> None:
    (graph / changed).write_bytes(b"another graph, or other weights beside it")

    with pytest.raises(GraphError, match=r"another graph\.onnx than is here; .* --overwrite$"):
        find_int8(graph)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Invalid JSON"),
        (b"{}", "graph_sha256: Field required"),
        (b'{"format_version": 2}', "format_version: Input should be 1"),
    ],
)
def test_twin_that_does_not_say_what_it_is_is_refused(
    graph: Path, data: bytes, message: str
) -> None:
    (graph / INT8 / INT8_SPEC).write_bytes(data)

    with pytest.raises(GraphError, match=rf"int8\.json: .*{message}.*; make it with: .*overwrite$"):
        find_int8(graph)
