"""What an exported graph says about itself (graph.json), what it is fed, and which bundles fit it.

Written by the export, read by the runtime; needs neither torch nor ONNX.

A graph takes images (B x 3 x H x W) of several tasks, and the tensors of these tasks, as
`create_feed` puts them side by side. It gives features (B x F) for the heads and, mostly, what of
the patches the pooled tokens attend to in the last block (B x N).
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lspt_serve.bounds import MAX_PROMPTS
from lspt_serve.bundle import Bundle
from lspt_serve.errors import BundleError, GraphError, first_mistake, name_some
from lspt_serve.manifest import BackboneRef, MethodRef
from lspt_serve.preprocess import Preprocess

__all__ = [
    "ATTENTION",
    "BACK",
    "BATCH",
    "FEATURES",
    "GRAPH_FILE",
    "IMAGES",
    "NUM_PROMPTS",
    "PLACE",
    "PROBABILITIES",
    "REFERENCE_FILE",
    "SPEC_FILE",
    "TRITON_CONFIG",
    "TRITON_GRAPH",
    "TRITON_MODEL",
    "TRITON_PRECISION",
    "TRITON_SPEC",
    "Dim",
    "GraphSpec",
    "ParityRow",
    "check_fits",
    "load_graph_spec",
]

GRAPH_FILE, SPEC_FILE, REFERENCE_FILE = "graph.onnx", "graph.json", "reference.safetensors"
# in a model repository of NVIDIA Triton: the model of all tasks, and the graph alone
TRITON_CONFIG, TRITON_MODEL, TRITON_GRAPH = "config.pbtxt", "lspt", "lspt-graph"
TRITON_SPEC, TRITON_PRECISION = "spec_sha256", "precision"  # parameters of the graph's model
IMAGES, PROBABILITIES, BATCH = "images", "probabilities", "batch"
FEATURES, ATTENTION = "features", "attention"
PLACE, BACK, NUM_PROMPTS = "place", "back", "num_prompts"  # whose row is whose
# 1 took the tensors of one task, 2 those of all slots, 3 did not give the attention
FORMAT_VERSION: Literal[4] = 4
OF_THE_GRAPH = ("img_size", "mean", "std")  # of a Preprocess; how images are cropped is the task's
Dim = int | str  # a fixed size, or the name of a free one


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ParityRow(_Record):
    """One comparison of an exported graph with torch in fp32."""

    task: str
    batch_size: int
    max_error: float  # largest |difference|, over the largest |value| that torch gave
    top1_agreement: float  # share of rows


class GraphSpec(_Record):
    """graph.json: which backbone is inside, which tensors of a task are inputs."""

    format_version: Literal[4] = FORMAT_VERSION
    backbone: BackboneRef
    method: MethodRef  # with the options that shape the graph
    pool: str
    preprocess: Preprocess
    num_features: int
    # rows and columns of the patches that the attention is of; None: the graph does not give it
    grid: tuple[int, int] | None = None
    inputs: Annotated[dict[str, list[Dim]], Field(description="task tensor -> shape in a bundle")]
    parity: list[ParityRow]

    @property
    def outputs(self) -> tuple[str, ...]:
        return (FEATURES,) if self.grid is None else (FEATURES, ATTENTION)

    @property
    def sha256(self) -> str:
        """Of what it computes, to which where its backbone came from, or a crop, is nothing."""
        told = self.model_dump_json(
            exclude={"backbone": {"source"}, "preprocess": {"crop_pct"}, "parity": True}
        )
        return hashlib.sha256(told.encode()).hexdigest()


def load_graph_spec(folder: Path) -> GraphSpec:
    """Read DIR/graph.json; raises GraphError if it is none, or if the graph itself is missing."""
    path = folder / SPEC_FILE
    try:
        spec = GraphSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise GraphError(
            f"{path}: cannot be read: {error.strerror}; make it with: lspt export --out {folder}"
        ) from error
    except ValidationError as error:
        mistake = first_mistake(error, whole="the file")
        again = "; export the graph again" if mistake.startswith("format_version") else ""
        raise GraphError(f"{path}: {mistake}{again}") from error
    for name in (GRAPH_FILE, REFERENCE_FILE):
        if not (folder / name).is_file():
            raise GraphError(f"{folder / name}: no such file; export the graph again")
    return spec


def check_fits(bundle: Bundle, graph: GraphSpec) -> None:
    """Whether a bundle can be run by a graph.

    Raises:
        BundleError: another backbone, method, option, pool, img_size, mean or std, or tensors that
            do not fit the graph's inputs; the difference is named.
    """
    bundle.check_backbone(graph.backbone)
    manifest = bundle.manifest
    theirs: dict[str, object] = {
        "method": manifest.method.name,
        "pool": manifest.pool,
        **{key: getattr(manifest.preprocess, key) for key in OF_THE_GRAPH},
        **{name: manifest.method.options.get(name) for name in graph.method.options},
    }
    ours: dict[str, object] = {
        "method": graph.method.name,
        "pool": graph.pool,
        **{key: getattr(graph.preprocess, key) for key in OF_THE_GRAPH},
        **graph.method.options,
    }
    wrong = [f"{key} {theirs[key]}, wanted {ours[key]}" for key in ours if theirs[key] != ours[key]]
    wrong = wrong or _misshapen(bundle, graph)
    if wrong:
        raise BundleError(
            f"bundle {bundle.name!r} does not fit the graph: {name_some(wrong)}; export another "
            f"graph with --like"
        )


def _misshapen(bundle: Bundle, graph: GraphSpec) -> list[str]:
    shapes = {name: list(tensor.shape) for name, tensor in bundle.method_tensors.items()}
    wrong = [f"tensor {name} is missing" for name in graph.inputs if name not in shapes]
    wrong += [f"tensor {name} is unexpected" for name in shapes if name not in graph.inputs]
    for name, wanted in graph.inputs.items():
        got = shapes.get(name, wanted)
        if len(got) != len(wanted) or any(
            isinstance(w, int) and g != w for g, w in zip(got, wanted, strict=False)
        ):
            wrong.append(f"tensor {name} is {got}, wanted {wanted}")
        elif any(
            isinstance(w, str) and not 1 <= g <= MAX_PROMPTS
            for g, w in zip(shapes.get(name, []), wanted, strict=False)
        ):
            wrong.append(f"tensor {name} is {got}, wanted 1 to {MAX_PROMPTS} prompts")
    features = bundle.head[0].shape[1]
    if features != graph.num_features:
        wrong.append(f"head takes {features} features, wanted {graph.num_features}")
    return wrong
