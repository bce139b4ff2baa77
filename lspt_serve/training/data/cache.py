"""Decoded images on disk: a .npy for each split, memory-mapped, and a cache.json beside them.

A cache lies in a folder of its own, named by its key: other files, another size or another version
of the package have another key. It may be deleted at any time.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from lspt_serve import __version__
from lspt_serve.errors import OutputError, printable
from lspt_serve.files import atomic_folder, remove_leftovers
from lspt_serve.preprocess import Preprocess
from lspt_serve.training.data.decode import Decoded, OnBadImage, OnImage, decode_source
from lspt_serve.training.data.source import Source

__all__ = ["decode_cached"]

RECORD = "cache.json"


class _Record(BaseModel):
    """cache.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    sha256: dict[str, str]  # of each .npy
    kept: dict[str, list[int]]
    bad: list[str]
    twins: list[str]


def decode_cached(
    source: Source,
    preprocess: Preprocess,
    *,
    cache: Path,
    name: str,
    on_bad_image: OnBadImage,
    on_image: OnImage,
) -> tuple[Decoded, list[str]]:
    """What `decode_source` gives, read from CACHE if it is there; and notes.

    Raises:
        DataError: as `decode_source`; nothing is written then.
        OutputError: the cache cannot be written, for example a full disk.
    """
    key = _key(source, preprocess, on_bad_image)
    folder = cache / f"{name}-{key[:16]}"
    notes: list[str] = []
    with _one_at_a_time(cache):
        remove_leftovers(folder)  # gigabytes
        if folder.exists():
            try:
                return _load(folder, key, source, preprocess), notes
            except (OSError, ValueError) as error:  # ValueError: pydantic's too
                reason = " ".join(str(error).split())
                where = printable(str(folder))
                notes.append(f"cache {where} is broken ({reason}); its images are decoded again")
        with atomic_folder(folder) as new:
            decoded = decode_source(
                source,
                preprocess,
                allocate=lambda split, shape: _on_disk(new / f"{split}.npy", shape),
                on_bad_image=on_bad_image,
                on_image=on_image,
            )
            _write_record(new, key, decoded)
        return _load(folder, key, source, preprocess), notes


@contextmanager
def _one_at_a_time(cache: Path) -> Iterator[None]:
    """Of several runs on one cache (seeds of a task, say) the first decodes, the others wait."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        handle = os.open(cache, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        raise OutputError(f"{cache} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        os.close(handle)  # gives the lock back, as the end of the process would


def _key(source: Source, preprocess: Preprocess, on_bad_image: OnBadImage) -> str:
    """sha256 over all that the decoded images depend on."""
    about = {
        "versions": [__version__, PIL.__version__, np.__version__],
        "img_size": preprocess.img_size,
        "crop_pct": preprocess.crop_pct,
        "on_bad_image": on_bad_image,
        "samples": {
            split: [(sample.name, sample.stamp()) for sample in samples]
            for split, samples in source.splits.items()
        },
    }
    return hashlib.sha256(json.dumps(about).encode("utf-8", "surrogatepass")).hexdigest()


def _on_disk(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array in a file whose bytes are there: a full disk is an OSError, not a crash later."""
    images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


def _write_record(folder: Path, key: str, decoded: Decoded) -> None:
    for images in decoded.images.values():
        assert isinstance(images, np.memmap)
        images.flush()
    record = _Record(
        key=key,
        sha256={split: _sha256(folder / f"{split}.npy") for split in decoded.images},
        kept=decoded.kept,
        bad=decoded.bad,
        twins=decoded.twins,
    )
    (folder / RECORD).write_text(record.model_dump_json() + "\n", "utf-8")


def _load(folder: Path, key: str, source: Source, preprocess: Preprocess) -> Decoded:
    """Raises OSError or ValueError for a cache that is not whole."""
    record = _Record.model_validate_json((folder / RECORD).read_bytes())
    if record.key != key:
        raise ValueError("its key is another one")
    images: dict[str, NDArray[np.uint8]] = {}
    for split, samples in source.splits.items():
        path = folder / f"{split}.npy"
        if _sha256(path) != record.sha256.get(split):
            raise ValueError(f"{path.name} has another sha256")
        images[split] = np.load(path, mmap_mode="r")
        kept, side = record.kept.get(split, []), preprocess.resized_side
        wanted = (len(samples), side, side, 3)
        if images[split].shape != wanted or not set(kept) <= set(range(len(samples))):
            raise ValueError(f"{path.name} is {images[split].shape}, wanted {wanted}")
    if sum(map(len, record.kept.values())) + len(record.bad) != sum(
        map(len, source.splits.values())
    ):
        raise ValueError("it counts other images")
    return Decoded(images, record.kept, record.bad, record.twins)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
