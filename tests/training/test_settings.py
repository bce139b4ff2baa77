import math
import re
from typing import Any

import pytest
import torch

from lspt_serve.errors import DataError
from lspt_serve.training.settings import (
    MIN_BF16_EMBED_DIM,
    Precision,
    TrainSettings,
    learning_rate,
    pick_device,
    pick_precision,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1.0),  # 2 x 1/2
        (1, 2.0),  # 2 x 2/2
        (2, 2.0),  # 1 + cos 0
        (6, 1.0),  # 1 + cos(pi 4/8)
        (9, 1 + math.cos(math.pi * 7 / 8)),
    ],
)
def test_learning_rate_warms_up_and_follows_a_cosine(step: int, expected: float) -> None:
    assert learning_rate(step, total=10, warmup=2, base=2.0) == pytest.approx(expected)


@pytest.mark.parametrize("total", [1, 2, 3, 10, 97])
@pytest.mark.parametrize("warmup", [0, 1, 3, 200])
def test_learning_rate_is_never_0_and_never_above_its_base(total: int, warmup: int) -> None:
    rates = [learning_rate(step, total=total, warmup=warmup, base=0.5) for step in range(total)]

    assert min(rates) > 0
    assert max(rates) <= 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", -1.0),
        ("prompt_lr_scale", 0.0),
        ("weight_decay", -0.1),
        ("warmup_epochs", -1.0),
        ("mixup", -0.1),
        ("label_smoothing", -0.1),
        ("label_smoothing", 1.0),
        ("accumulate", 0),
        ("accumulate", 65),
        ("early_stop", 0),
    ],
)
def test_bad_settings_are_named_with_their_value(field: str, value: float) -> None:
    bad: dict[str, Any] = {field: value}

    with pytest.raises(DataError, match=f"{field} must .* got {value}"):
        TrainSettings(**bad)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    "field",
    ["lr", "prompt_lr_scale", "weight_decay", "warmup_epochs", "mixup", "label_smoothing"],
)
def test_what_is_no_number_is_refused(field: str, value: float) -> None:
    bad: dict[str, Any] = {field: value}

    with pytest.raises(DataError, match=f"^{field} must be finite, got {value}$"):
        TrainSettings(**bad)


@pytest.mark.parametrize("augment", ["", "flip+crop", "mixup"])
def test_augmentation_that_there_is_not_is_refused(augment: Any) -> None:
    with pytest.raises(DataError, match=f"augment must be .*, got '{re.escape(augment)}'"):
        TrainSettings(augment=augment)


def test_epoch_to_keep_that_there_is_not_is_refused() -> None:
    bad: Any = "first"

    with pytest.raises(DataError, match="keep must be best or last, got 'first'"):
        TrainSettings(keep=bad)


@pytest.mark.parametrize(
    ("field", "known"), [("sampling", "all or balanced"), ("precision", "auto, fp32, bf16 or fp16")]
)
def test_choice_that_there_is_not_is_refused(field: str, known: str) -> None:
    bad: dict[str, Any] = {field: "some"}

    with pytest.raises(DataError, match=f"{field} must be {known}, got 'some'"):
        TrainSettings(**bad)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    with pytest.raises(DataError, match="seed"):
        TrainSettings(seed=seed)


@pytest.mark.parametrize(("has_gpu", "expected"), [(False, "cpu"), (True, "cuda")])
def test_auto_device_is_the_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)

    assert pick_device("auto").type == expected


def test_gpu_that_is_asked_for_and_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(DataError, match="no CUDA GPU"):
        pick_device("cuda")


@pytest.mark.parametrize(("device", "there"), [("cuda:1", True), ("cuda:2", False)])
def test_gpu_is_one_of_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch, device: str, *, there: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    if there:
        assert str(pick_device(device)) == device
    else:
        with pytest.raises(DataError, match="'cuda:2' was asked for, and the last is cuda:1; use"):
            pick_device(device)


@pytest.mark.parametrize("device", ["tpu", "", "cpu:x", "cuda:x", "cuda:01", "cuda:1000"])
def test_device_that_torch_does_not_know_is_refused(device: str) -> None:
    with pytest.raises(DataError, match="device"):
        pick_device(device)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_precision_that_is_asked_for_is_taken(
    precision: Precision, device: torch.device, expected: torch.dtype
) -> None:
    assert pick_precision(precision, device, 24) == expected


@pytest.mark.parametrize(
    ("has_bf16", "embed_dim", "expected"),
    [
        (True, MIN_BF16_EMBED_DIM, torch.bfloat16),
        (True, MIN_BF16_EMBED_DIM - 1, torch.float32),
        (False, 768, torch.float32),
    ],
)
def test_auto_precision_on_a_cpu_is_bf16_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, embed_dim: int, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)

    assert pick_precision("auto", CPU, embed_dim) == expected


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_precision_on_a_gpu_is_bf16_where_the_hardware_has_it(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)

    assert pick_precision("auto", CUDA, 24) == expected
