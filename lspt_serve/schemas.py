"""What the API takes and answers, as OpenAPI shows it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lspt_serve.manifest import Metrics

__all__ = [
    "EXAMPLE_ID",
    "MAX_LABELS",
    "MAX_PAIRS",
    "Activation",
    "Answer",
    "Attention",
    "ClassifyFields",
    "ClassifyManyFields",
    "ErrorAnswer",
    "Failure",
    "Item",
    "ItemFailure",
    "LabelScore",
    "ManyAnswer",
    "Task",
    "TaskList",
    "Timings",
]

Activation = Literal["softmax", "sigmoid", "none"]
EXAMPLE: dict[str, Any] = {
    "task": "digit",
    "version": 1,
    "predictions": [{"label": "7", "score": 0.98, "index": 7}],
}
TIMINGS = {"decode": 0.4, "engine": 1.9, "total": 2.6}
EXAMPLE_ID = "4f0c2e5d1b7a4c7e9d55f8a7c9b1e0aa"
REQUEST: dict[str, Any] = {"request_id": EXAMPLE_ID, "timings_ms": TIMINGS}
EXAMPLE_TASK: dict[str, Any] = {
    "name": "parity",
    "version": 2,
    "versions": [1, 2],
    "aliases": {"stable": 1},
    "resident": True,
    "labels": ["even", "odd"],
    "method": "lspt",
    "metrics": {
        "val_accuracy": 0.97,
        "test_accuracy": 0.96,
        "best_epoch": 16,
        "seed": 0,
        "split": {"train": 700, "val": 200, "test": 200},
        "train_s": 5.2,
    },
    "license": "CC-BY-4.0",
}

MAX_REFERENCE = 256  # letters; an answer repeats it for every image
MAX_TASKS = 1000
MAX_PAIRS = 1000  # of an image and a task, in a request
MAX_LABELS = 100_000  # of all of these, in an answer
Reference = Annotated[str, Field(max_length=MAX_REFERENCE)]


class _Fields(BaseModel):
    top_k: Annotated[int, Field(ge=1, le=1000, description="How many labels, best first.")] = 5
    activation: Annotated[
        Activation,
        Field(
            description="What scores are: softmax, of labels that exclude one another; sigmoid, of "
            "labels that do not; none, the logits."
        ),
    ] = "softmax"
    threshold: Annotated[
        float | None, Field(allow_inf_nan=False, description="No labels that score less.")
    ] = None


class ClassifyFields(_Fields):
    """What is asked of an image."""

    attention: Annotated[
        bool, Field(description="Also where in the image the answer looks; costs a second run.")
    ] = False

    task: Annotated[
        Reference,
        Field(
            description="NAME, NAME@VERSION or NAME:ALIAS; GET /tasks lists them.",
            examples=["digit"],
        ),
    ]


class ClassifyManyFields(_Fields):
    """What is asked of every image."""

    tasks: Annotated[
        list[Reference],
        Field(
            min_length=1,
            max_length=MAX_TASKS,
            fail_fast=True,
            description="Each NAME, NAME@VERSION or NAME:ALIAS.",
            examples=[["digit", "parity"]],
        ),
    ]


class LabelScore(BaseModel):
    """`score` is as `activation` says, `index` the label's place in the task's labels."""

    model_config = ConfigDict(from_attributes=True)

    label: str
    score: float
    index: int


class Timings(BaseModel):
    """Milliseconds that a request spent; of several images the sums, which may overlap."""

    decode: float
    engine: float
    total: float


class Attention(BaseModel):
    """How much of its attention the answer gives to each patch of the image, in the last block.

    `values` are rows from the top, each from the left, in [0, 1]; what is missing to 1 goes to what
    is no patch. They lie over the whole image where `crop_pct` is 1, else over the square in its
    middle whose side is that share of the image's shorter one.
    """

    height: int
    width: int
    values: list[list[float]]
    crop_pct: float


class Answer(BaseModel):
    """Best label first; `attention` where it was asked for and the graph gives it."""

    model_config = ConfigDict(json_schema_extra={"example": {**EXAMPLE, **REQUEST}})

    task: str
    version: int
    predictions: list[LabelScore]
    attention: Attention | None = None
    request_id: str
    timings_ms: Timings


class ItemFailure(BaseModel):
    """`item` is the field that is to blame, if it is one."""

    code: str
    message: str
    item: str | None = None


class Item(BaseModel):
    """One image by one task: `version` and `predictions`, best first, or else `error`.

    `image` counts the request's images from 0, `file` is the name that the image was sent with.
    """

    image: int
    file: str | None
    task: str
    version: int | None = None
    predictions: list[LabelScore] | None = None
    error: ItemFailure | None = None


class ManyAnswer(BaseModel):
    """Every image by every task, as they were given; the tasks of the first image come first."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"items": [{"image": 0, "file": "7.png", **EXAMPLE}]} | REQUEST
        }
    )

    items: list[Item]
    request_id: str
    timings_ms: Timings


class Task(BaseModel):
    """A task that the server answers for: the version that its name alone stands for.

    `resident`: its tensors are in the memory of the process that answers; else they are read when
    the next image comes.
    """

    model_config = ConfigDict(json_schema_extra={"example": EXAMPLE_TASK})

    name: str
    version: int
    versions: list[int]
    aliases: dict[str, int]
    resident: bool
    labels: list[str]
    method: str
    metrics: Metrics | None
    license: str | None


class TaskList(BaseModel):
    """`refused` are bundles in the folder that are not served, each with the reason.

    `generation` grows with every change of the folder that the server has seen.
    """

    model_config = ConfigDict(
        json_schema_extra={"example": {"generation": 3, "tasks": [EXAMPLE_TASK], "refused": {}}}
    )

    generation: int
    tasks: list[Task]
    refused: dict[str, str]


class Failure(ItemFailure):
    """`item` is the request's field that is to blame, if it is one."""

    request_id: str


class ErrorAnswer(BaseModel):
    """What every refused request gets."""

    error: Failure
