"""What is answered under /v2, as OpenAPI shows it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

__all__ = [
    "ConfigParameter",
    "ConfigTensor",
    "Index",
    "IndexRow",
    "InferAnswer",
    "ModelConfiguration",
    "ModelMetadata",
    "ServerMetadata",
    "TensorMetadata",
]


class ServerMetadata(BaseModel):
    """What the server is, and which extensions of the protocol it has."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "lspt-serve",
                "version": "0.1.0",
                "extensions": ["binary_tensor_data", "classification"],
            }
        }
    )

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """-1 in `shape` is any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A task; one of its inputs is to be given."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "parity",
                "versions": ["1", "2"],
                "platform": "lspt",
                "inputs": [
                    {"name": "IMAGE", "datatype": "BYTES", "shape": [-1]},
                    {"name": "PIXELS", "datatype": "FP32", "shape": [-1, 3, 224, 224]},
                ],
                "outputs": [{"name": "SCORES", "datatype": "FP32", "shape": [-1, 2]}],
            }
        }
    )

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ConfigTensor(BaseModel):
    """-1 in `dims` is any number."""

    name: str
    data_type: str
    dims: list[int]
    optional: bool = False


class ConfigParameter(BaseModel):
    """A text."""

    string_value: str


class ModelConfiguration(BaseModel):
    """As Triton's ModelConfig has it; parameter `labels` is a list as JSON."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "parity",
                "platform": "lspt",
                "backend": "lspt",
                "max_batch_size": 0,
                "input": [
                    {"name": "IMAGE", "data_type": "TYPE_STRING", "dims": [-1], "optional": True},
                    {
                        "name": "PIXELS",
                        "data_type": "TYPE_FP32",
                        "dims": [-1, 3, 224, 224],
                        "optional": True,
                    },
                ],
                "output": [{"name": "SCORES", "data_type": "TYPE_FP32", "dims": [-1, 2]}],
                "parameters": {"labels": {"string_value": '["even", "odd"]'}},
            }
        }
    )

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    parameters: dict[str, ConfigParameter]


class IndexRow(BaseModel):
    """A version of a task, or a folder that is no bundle, with the reason."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class Index(RootModel[list[IndexRow]]):
    """All versions of all tasks, and folders that are refused."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": [{"name": "digit", "version": "1", "state": "READY", "reason": ""}]
        }
    )


class OutputAnswer(BaseModel):
    """A tensor; its data are here or, where parameters have `binary_data_size`, after the JSON."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferAnswer(BaseModel):
    """With binary data, the header Inference-Header-Content-Length has the length of the JSON."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model_name": "digit",
                "model_version": "1",
                "outputs": [
                    {
                        "name": "SCORES",
                        "datatype": "BYTES",
                        "shape": [1, 2],
                        "data": ["0.981234:7:7", "0.010203:9:9"],
                    }
                ],
            }
        },
        protected_namespaces=(),
    )

    model_name: str
    model_version: str
    id: Annotated[str | None, Field(description="The request's.")] = None
    outputs: list[OutputAnswer]
