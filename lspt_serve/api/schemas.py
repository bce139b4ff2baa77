"""What the API answers, as OpenAPI shows it."""

from pydantic import BaseModel, ConfigDict

from lspt_serve.bundle import Metrics

__all__ = ["Answer", "ErrorAnswer", "Failure", "LabelScore", "Task", "TaskList", "Timings"]


class LabelScore(BaseModel):
    """`score` is a probability in [0, 1], `index` the label's place in the task's labels."""

    model_config = ConfigDict(from_attributes=True)

    label: str
    score: float
    index: int


class Timings(BaseModel):
    """Milliseconds that a request spent."""

    decode: float
    engine: float
    total: float


class Answer(BaseModel):
    """Best label first."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "task": "digit",
                "version": 1,
                "predictions": [{"label": "7", "score": 0.98, "index": 7}],
                "request_id": "4f0c2e5d1b7a4c7e9d55f8a7c9b1e0aa",
                "timings_ms": {"decode": 0.4, "engine": 1.9, "total": 2.6},
            }
        }
    )

    task: str
    version: int
    predictions: list[LabelScore]
    request_id: str
    timings_ms: Timings


class Task(BaseModel):
    """A task that the server answers for."""

    name: str
    version: int
    labels: list[str]
    method: str
    metrics: Metrics | None
    license: str | None


class TaskList(BaseModel):
    """`refused` are bundles in the folder that are not served, each with the reason.

    `generation` grows with every change of the folder that the server has seen.
    """

    generation: int
    tasks: list[Task]
    refused: dict[str, str]


class Failure(BaseModel):
    """`item` is the request's field that is to blame, if it is one."""

    code: str
    message: str
    request_id: str
    item: str | None = None


class ErrorAnswer(BaseModel):
    """What every refused request gets."""

    error: Failure
