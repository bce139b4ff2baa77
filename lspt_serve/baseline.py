"""The record of a fully fine-tuned model, a baseline for the methods that bundles are of.

baseline.json says what was trained and how well it does. Needs no torch.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from lspt_serve import __version__
from lspt_serve.bundle import BASELINE
from lspt_serve.errors import BundleError, first_mistake
from lspt_serve.manifest import BackboneRef, MethodRef, Metrics
from lspt_serve.preprocess import Preprocess

__all__ = ["BaselineRecord", "load_baseline"]


class BaselineRecord(BaseModel):
    """baseline.json; what a bundle has too is called as there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    labels: list[str]
    method: MethodRef
    backbone: BackboneRef  # that training started from
    preprocess: Preprocess
    pool: str
    num_bytes: int  # of all weights, float32
    weights: str  # their file
    metrics: Metrics
    created_with: str = f"lspt-serve {__version__}"


def load_baseline(folder: Path) -> BaselineRecord:
    """Raises BundleError for a record that cannot be read."""
    path = folder / BASELINE
    try:
        return BaselineRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise BundleError(f"{path}: {first_mistake(error, whole='the file')}") from error
