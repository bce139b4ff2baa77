from typing import Any

import numpy as np
import pytest
import torch

from lspt_serve.errors import BundleError
from lspt_serve.rounding import round_tensors

LARGEST, SMALLEST = 65504.0, 2.0**-24  # of float16; the smallest is subnormal


def array(*values: float) -> Any:
    return np.array(values, np.float32)


def test_float16_is_what_torch_makes_of_it() -> None:
    values = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    values *= np.float32(10.0) ** np.arange(-8, 0).repeat(5)  # down into the subnormals

    rounded = round_tensors({"values": values}, "float16")["values"]

    assert rounded.dtype == np.float32
    assert torch.equal(torch.from_numpy(rounded), torch.from_numpy(values).half().float())
    assert not np.array_equal(rounded, values)
    assert np.array_equal(round_tensors({"values": rounded}, "float16")["values"], rounded)


def test_float32_stays_as_it_is() -> None:
    tensors = {"large": array(1e30), "small": array(1e-30)}
    assert round_tensors(tensors, "float32") == tensors


@pytest.mark.parametrize("value", [LARGEST, -LARGEST, SMALLEST, 0.0])
def test_what_float16_knows_is_kept(value: float) -> None:
    assert round_tensors({"x": array(value)}, "float16")["x"].tolist() == [value]


def test_a_few_lost_values_are_no_error() -> None:
    assert round_tensors({"x": array(1.0, 1e-9)}, "float16")["x"].tolist() == [1.0, 0.0]
    assert round_tensors({"x": np.zeros((0, 3), np.float32)}, "float16")["x"].shape == (0, 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (65505.0, "head.bias reaches 65505, beyond 65504"),  # numpy would round it down
        (-1e6, r"head.bias reaches 1e\+06, beyond 65504"),
        (float("inf"), "head.bias reaches inf, beyond 65504"),
        (2e-8, "head.bias becomes all zeros, its largest value is 2.0e-08"),
    ],
)
def test_a_tensor_that_float16_does_not_hold_is_named(value: float, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        round_tensors({"head.weight": array(1.0), "head.bias": array(0.0, value)}, "float16")
    assert str(caught.value).endswith("; use float32")
    assert "head.weight" not in str(caught.value)


def test_all_tensors_that_do_not_fit_are_named() -> None:
    with pytest.raises(BundleError, match=r"a reaches 100000.*, b becomes all zeros"):
        round_tensors({"a": array(1e5), "b": array(1e-9), "c": array(1)}, "float16")


@pytest.mark.parametrize("dtype", ["fp16", "bfloat16", "int8", ""])
def test_an_unknown_dtype_is_refused(dtype: Any) -> None:
    with pytest.raises(BundleError, match=f"unknown dtype '{dtype}'; wanted float32 or float16"):
        round_tensors({}, dtype)
