"""Models, that is tasks: whether they are there, and what they take and give."""

import json

from fastapi import APIRouter

from lspt_serve.api.auth import CallersClassifier
from lspt_serve.api.openapi import responses
from lspt_serve.api.v2.schemas import (
    ConfigParameter,
    ConfigTensor,
    ModelConfiguration,
    ModelMetadata,
    TensorMetadata,
)
from lspt_serve.manifest import Manifest

__all__ = ["IMAGE", "MODEL", "PIXELS", "SCORES", "VERSION", "refer", "router"]

IMAGE, PIXELS, SCORES = "IMAGE", "PIXELS", "SCORES"
PLATFORM = "lspt"
MODEL, VERSION = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
router = APIRouter(responses=responses(401, 404, 504, of_v2=True))


def refer(name: str, version: str | None) -> str:
    """The reference to a task; without a version `name` may be NAME:ALIAS, too."""
    return name if version is None else f"{name}@{version}"


@router.get(f"{MODEL}/ready")
@router.get(f"{VERSION}/ready")
def is_ready(name: str, classifier: CallersClassifier, version: str | None = None) -> None:
    """The task is served."""
    classifier.tasks.manifest(refer(name, version))


@router.get(MODEL)
@router.get(VERSION)
def get_metadata(
    name: str, classifier: CallersClassifier, version: str | None = None
) -> ModelMetadata:
    """Versions, inputs (one of which is to be given) and the output."""
    manifest = classifier.tasks.manifest(refer(name, version))
    scores = [-1, len(manifest.labels)]
    return ModelMetadata(
        name=manifest.name,
        versions=[str(number) for number in classifier.store.about(manifest).versions],
        platform=PLATFORM,
        inputs=[
            TensorMetadata(name=IMAGE, datatype="BYTES", shape=[-1]),
            TensorMetadata(name=PIXELS, datatype="FP32", shape=_shape(manifest)),
        ],
        outputs=[TensorMetadata(name=SCORES, datatype="FP32", shape=scores)],
    )


@router.get(f"{MODEL}/config", response_model_exclude_unset=True)
@router.get(f"{VERSION}/config", response_model_exclude_unset=True)
def get_config(
    name: str, classifier: CallersClassifier, version: str | None = None
) -> ModelConfiguration:
    """As Triton's ModelConfig has it; `dims` have the batch in front, as max_batch_size 0 says.

    The labels are a parameter, as JSON.
    """
    manifest = classifier.tasks.manifest(refer(name, version))
    pixels, scores = _shape(manifest), [-1, len(manifest.labels)]
    return ModelConfiguration(
        name=manifest.name,
        platform=PLATFORM,
        backend=PLATFORM,
        max_batch_size=0,
        input=[
            ConfigTensor(name=IMAGE, data_type="TYPE_STRING", dims=[-1], optional=True),
            ConfigTensor(name=PIXELS, data_type="TYPE_FP32", dims=pixels, optional=True),
        ],
        output=[ConfigTensor(name=SCORES, data_type="TYPE_FP32", dims=scores)],
        parameters={"labels": ConfigParameter(string_value=json.dumps(manifest.labels))},
    )


def _shape(manifest: Manifest) -> list[int]:
    side = manifest.preprocess.img_size
    return [-1, 3, side, side]
