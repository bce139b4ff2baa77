"""Tensors as a bundle stores them: in float32, or rounded to float16 for half the bytes."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lspt_serve.errors import BundleError, name_some

__all__ = ["Dtype", "round_tensors"]

Dtype = Literal["float32", "float16"]  # as numpy names them


def round_tensors(
    tensors: Mapping[str, NDArray[np.float32]], dtype: Dtype
) -> dict[str, NDArray[np.float32]]:
    """What is left of the tensors when they were stored in `dtype` and read back; float32.

    Raises:
        BundleError: unknown dtype, a tensor with values beyond the largest of float16 (65504), or
            one that it rounds to nothing but zeros; all are named.
    """
    if dtype not in get_args(Dtype):
        raise BundleError(f"unknown dtype {dtype!r}; wanted {' or '.join(get_args(Dtype))}")
    if dtype == "float32":
        return dict(tensors)
    limit = float(np.finfo(dtype).max)
    rounded, problems = {}, []
    for name, tensor in tensors.items():
        largest = float(np.abs(tensor).max(initial=0))
        if largest > limit:
            problems.append(f"{name} reaches {largest:.6g}, beyond {limit:.0f}")
            continue
        rounded[name] = tensor.astype(dtype).astype(np.float32)
        if largest > 0 and not rounded[name].any():
            problems.append(f"{name} becomes all zeros, its largest value is {largest:.1e}")
    if problems:
        raise BundleError(f"{dtype} does not hold the tensors: {name_some(problems)}; use float32")
    return rounded
