"""The int8 twin of an exported graph: GRAPH/int8/, as OpenVINO keeps a model.

Written by `lspt quantise`, read by the runtime; needs neither torch nor OpenVINO.
"""

import hashlib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lspt_serve.errors import GraphError, first_mistake
from lspt_serve.graph import GRAPH_FILE

__all__ = ["INT8", "INT8_GRAPH", "INT8_SPEC", "Quantised", "find_int8", "hash_graph"]

INT8 = "int8"  # the folder; one, so that its files are replaced together
INT8_GRAPH, INT8_SPEC = "graph.xml", "int8.json"
FORMAT_VERSION: Literal[1] = 1
AGAIN = "make it with: lspt quantise --graph {graph} --bundle BUNDLE --data DATA"


class Quantised(BaseModel):
    """int8.json: what was quantised, and on what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = FORMAT_VERSION
    graph_sha256: str
    calibrated_on: str  # a task
    num_images: int = Field(ge=1)

    def save(self, folder: Path) -> None:
        """Write FOLDER/int8.json."""
        (folder / INT8_SPEC).write_text(self.model_dump_json(indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises OSError, or GraphError if the file is not what it should be."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise GraphError(f"{path}: {first_mistake(error, whole='the file')}") from error


def hash_graph(folder: Path) -> str:
    """sha256 of graph.onnx, and of the weights beside it where torch put them there."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob(f"{GRAPH_FILE}*")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def find_int8(folder: Path) -> Path:
    """The int8 twin of the graph in this very folder.

    Raises:
        GraphError: there is none, or it is another graph's.
    """
    path = folder / INT8 / INT8_SPEC
    again = AGAIN.format(graph=folder)
    try:
        quantised = Quantised.load(path)
    except OSError as error:
        raise GraphError(f"{path}: cannot be read: {error.strerror}; {again}") from error
    except GraphError as error:
        raise GraphError(f"{error}; {again} --overwrite") from error
    if quantised.graph_sha256 != hash_graph(folder):
        raise GraphError(
            f"{path}: made from another {GRAPH_FILE} than is here; {again} --overwrite"
        )
    return folder / INT8 / INT8_GRAPH
