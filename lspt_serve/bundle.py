"""The bundle: all that a task is, and all that training hands on. See docs/bundle-format.md.

A folder: `bundle.json` says what the task is and which backbone it belongs to,
`tensors.safetensors` holds its tensors, and `bundle.sig` may say who made it. Needs numpy, not
torch.
"""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lspt_serve import __version__
from lspt_serve.errors import BundleError, name_some
from lspt_serve.files import atomic_folder, check_inside, read_file
from lspt_serve.manifest import FORMAT_VERSION, BackboneRef, Manifest
from lspt_serve.rounding import Dtype, round_tensors
from lspt_serve.signatures import SIGNATURE, TrustedKeys

__all__ = [
    "BASELINE",
    "MANIFEST",
    "TENSORS",
    "Bundle",
    "check_no_baseline",
    "load_bundle",
    "save_bundle",
]

MANIFEST, TENSORS = "bundle.json", "tensors.safetensors"
BASELINE = "baseline.json"  # of a folder that lspt train --method full wrote
MAX_MANIFEST_BYTES = MAX_HEADER_BYTES = 16_000_000  # of bundle.json, and before the tensors
MAX_FIELDS_BYTES = 1_000_000  # of bundle.json without its labels


class Bundle:
    """A task in memory: its manifest and its tensors (name -> float32 array).

    `method_tensors` are those that enter the graph, all but the head; engines know a task by it.
    """

    def __init__(self, manifest: Manifest, tensors: dict[str, NDArray[np.float32]]) -> None:
        self.manifest = manifest
        self.tensors = tensors
        self.method_tensors = {k: v for k, v in tensors.items() if not k.startswith("head.")}

    @classmethod
    def create(
        cls, tensors: dict[str, NDArray[np.float32]], *, dtype: Dtype = "float32", **manifest: Any
    ) -> Self:
        """Make a bundle of tensors and the fields of a Manifest that do not describe them.

        Args:
            dtype: what they are stored in; they are rounded to it at once.

        Raises:
            BundleError: a field that the format does not allow, or a tensor that `dtype` does not
                hold; it is named.
        """
        # safetensors writes the memory of an array whatever its strides
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        tensors = round_tensors(tensors, dtype)
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        sha256 = hashlib.sha256(_to_bytes(tensors, dtype)).hexdigest()
        described: dict[str, Any] = {"dtype": dtype, "tensors": shapes, "tensors_sha256": sha256}
        try:
            return cls(Manifest(**described, **manifest), tensors)
        except ValidationError as error:
            raise BundleError(f"no bundle can be made: {_explain(error)}") from error

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def labels(self) -> list[str]:
        return self.manifest.labels

    @property
    def num_bytes(self) -> int:
        """Of the tensors as they are stored."""
        itemsize = np.dtype(self.manifest.dtype).itemsize
        return itemsize * sum(tensor.size for tensor in self.tensors.values())

    @property
    def head(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weight (K x F) and bias (K), applied to the features that the graph gives."""
        return self.tensors["head.weight"], self.tensors["head.bias"]

    def check_backbone(self, backbone: BackboneRef) -> None:
        """Raises BundleError if the bundle was trained on another backbone."""
        own = self.manifest.backbone
        if own.sha256 != backbone.sha256:
            raise BundleError(
                f"bundle {self.name!r} belongs to backbone {own.label} (sha256 "
                f"{own.sha256[:12]}), not to {backbone.label} (sha256 {backbone.sha256[:12]})"
            )


def check_no_baseline(folder: Path) -> None:
    """Raises BundleError for a folder that holds a fully fine-tuned model."""
    try:
        (folder / BASELINE).stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise BundleError(f"{folder / BASELINE}: cannot be read: {error.strerror}") from error
    else:
        raise BundleError(
            f"{folder}: a baseline that lspt train --method full wrote, no bundle; a task is "
            "served from a bundle of another method"
        )


def save_bundle(bundle: Bundle, folder: Path) -> None:
    """Write a bundle whole or not at all; an existing folder is replaced, with its signature.

    Raises:
        OutputError: the folder cannot be written, for example a full disk.
    """
    with atomic_folder(folder) as temporary:
        data = _to_bytes(bundle.tensors, bundle.manifest.dtype)
        (temporary / TENSORS).write_bytes(data)
        (temporary / MANIFEST).write_text(bundle.manifest.model_dump_json(indent=2) + "\n", "utf-8")


def load_bundle(
    folder: Path, *, trusted: TrustedKeys | None = None, within: Path | None = None
) -> Bundle:
    """Read a bundle and check it strictly; its tensors become float32.

    Args:
        trusted: one of these keys has to have signed it; None: nobody needs to.
        within: the folder that it lies in, which no link may lead out of; None: links may lead
            anywhere.

    Raises:
        BundleError: no bundle, not signed, a newer format, a bad field, a link that leads out, or
            tensors that are missing, unexpected, misshapen, of another dtype, not finite or not
            those of the manifest.
    """
    if within is not None:
        _check_links(folder, within)
    try:
        manifest = _read_manifest(folder, trusted)
    except BundleError:
        check_no_baseline(folder)  # which says more
        raise
    data = _read_bytes(folder / TENSORS, max_bytes=MAX_HEADER_BYTES + _num_bytes(manifest))
    if trusted is not None:  # what nobody signed is not parsed
        _check_sha256(folder, manifest, data)
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{folder / TENSORS}: not a safetensors file: {error}") from error
    _check_tensors(folder, manifest, tensors)
    if trusted is None:  # now that whatever says more has been said
        _check_sha256(folder, manifest, data)
    return Bundle(manifest, {k: t.astype(np.float32, copy=False) for k, t in tensors.items()})


def _check_links(folder: Path, within: Path) -> None:
    files = [folder / file for file in (MANIFEST, TENSORS, SIGNATURE)]
    # where links lead takes six times as long to find; a disk that fails is the reading's to tell
    if not any(map(os.path.islink, (folder, *files))):
        return
    for path in files:
        try:
            check_inside(path, within)
        except OSError as error:
            raise BundleError(f"{path}: {error.strerror}") from error


def _to_bytes(tensors: dict[str, NDArray[np.float32]], dtype: Dtype) -> bytes:
    return save({name: tensor.astype(dtype, copy=False) for name, tensor in tensors.items()})


def _num_bytes(manifest: Manifest) -> int:
    """Of the tensors, by what it says of them."""
    return np.dtype(manifest.dtype).itemsize * sum(map(math.prod, manifest.tensors.values()))


def _read_bytes(path: Path, *, max_bytes: int) -> bytes:
    try:
        return read_file(path, max_bytes=max_bytes)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error


def _read_manifest(folder: Path, trusted: TrustedKeys | None) -> Manifest:
    path = folder / MANIFEST
    data = _read_bytes(path, max_bytes=MAX_MANIFEST_BYTES)
    if trusted is not None:
        trusted.check(folder, data)  # of the very bytes that are read below
    try:
        fields = json.loads(data)
        _check_sizes(path, data, fields)
    except BundleError:
        raise
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON: {error}") from error
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{path}: format version {version}; lspt-serve {__version__} reads up to "
            f"{FORMAT_VERSION}: update it"
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleError(f"{path}: {_explain(error)}") from error


def _check_sizes(path: Path, data: bytes, fields: Any) -> None:
    """Only labels may be many: a million mistakes elsewhere would take gigabytes to tell."""
    if len(data) <= MAX_FIELDS_BYTES or not isinstance(fields, dict):
        return
    others = {name: value for name, value in fields.items() if name != "labels"}
    if len(json.dumps(others)) > MAX_FIELDS_BYTES:
        raise BundleError(f"{path}: more than {MAX_FIELDS_BYTES} bytes without the labels")


def _explain(error: ValidationError) -> str:
    mistakes = error.errors(include_url=False, include_context=False, include_input=False)
    return name_some(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in mistakes)


def _check_sha256(folder: Path, manifest: Manifest, data: bytes) -> None:
    if hashlib.sha256(data).hexdigest() != manifest.tensors_sha256:
        raise BundleError(
            f"{folder / TENSORS}: sha256 is not the one in {MANIFEST}; changed since?"
        )


def _check_tensors(folder: Path, manifest: Manifest, tensors: dict[str, Any]) -> None:
    wanted, num_labels = manifest.tensors, len(manifest.labels)
    head_ndim = {"head.weight": 2, "head.bias": 1}
    problems = [f"{name} is missing" for name in wanted | head_ndim if name not in tensors]
    problems += [f"{name} is unexpected" for name in tensors if name not in wanted]
    for name, tensor in tensors.items():
        ndim = head_ndim.get(name, tensor.ndim)
        if name in wanted and list(tensor.shape) != wanted[name]:
            problems.append(f"{name} is {list(tensor.shape)}, wanted {wanted[name]}")
        elif tensor.ndim != ndim or (name in head_ndim and len(tensor) != num_labels):
            problems.append(f"{name} is {list(tensor.shape)} for {num_labels} labels")
        elif tensor.dtype != manifest.dtype:
            problems.append(f"{name} is {tensor.dtype}, wanted {manifest.dtype}")
        elif not np.isfinite(tensor).all():
            problems.append(f"{name} holds values that are not finite")
    if problems:
        raise BundleError(f"{folder / TENSORS}: {name_some(problems)}")
