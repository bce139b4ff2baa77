"""Read the weights of a ViT from a local file.

Two containers: .safetensors, whose header may say the architecture and preprocessing outright, and
pickles (.pth, .pt, .pth.tar), read without running code. What is in them: see formats.py.
"""

import argparse
import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lspt_serve.errors import BackboneError, first_line
from lspt_serve.models.architecture import infer_architecture
from lspt_serve.models.formats import Weights, find_weights
from lspt_serve.preprocess import NORMALISATIONS, Normalisation

__all__ = ["Checkpoint", "load_checkpoint"]

JSON_METADATA = {"architecture", "mean", "std"}


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds and says about itself; its metadata goes before what the format implies."""

    weights: Weights
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> dict[str, Any]:
        """Keyword arguments of timm's VisionTransformer."""
        inferred = self.metadata.get("architecture")
        return inferred or infer_architecture(
            self.weights.tensors, num_heads=self.weights.num_heads
        )

    @property
    def mean(self) -> Any:
        return self.metadata.get("mean", NORMALISATIONS[self.weights.normalisation][0])

    @property
    def std(self) -> Any:
        return self.metadata.get("std", NORMALISATIONS[self.weights.normalisation][1])

    @property
    def assumes_heads(self) -> bool:
        """Whether nothing tells the number of heads."""
        return not (self.weights.is_certain or self.metadata.get("architecture"))

    @property
    def assumed_normalisation(self) -> Normalisation | None:
        """The one that is taken where nothing tells it."""
        told = self.weights.is_certain or {"mean", "std"} <= self.metadata.keys()
        return None if told else self.weights.normalisation

    @property
    def pool(self) -> str | None:
        return self.metadata.get("pool", self.weights.pool)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a .safetensors file or a pickle of plain tensors.

    Raises:
        BackboneError: not such a file, truncated, no tensors, or a pickle that wants to run code.
    """
    metadata: dict[str, Any] = {}
    if path.suffix == ".safetensors":
        loaded, metadata = _read_safetensors(path)
    else:
        loaded = _read_pickle(path)
    weights = find_weights(loaded) if isinstance(loaded, dict) else None
    if weights is None or not weights.tensors:
        raise BackboneError(f"{path}: wanted a state dict (name -> tensor)")
    return Checkpoint(weights, metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {
            name: json.loads(value) if name in JSON_METADATA else value
            for name, value in header.items()
        }
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise BackboneError(f"{path}: cannot be read as safetensors: {error}") from error
    return tensors, metadata


def _read_pickle(path: Path) -> Any:
    """Unpickle plain data and tensors; of classes only the Namespace of a script's options."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of other pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler and zip reader do
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        way_out = "save its state_dict alone, or as .safetensors"
        reason = f"it wants to run {culprit[1]}; {way_out}" if culprit else first_line(error)
        raise BackboneError(f"{path}: no state dict of plain tensors: {reason}") from error
