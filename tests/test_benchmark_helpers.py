"""What the benchmarks of serving reckon with, by examples worked by hand."""

import math
import platform
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from common import Target, check_equal, name_cpu, paired_ratio, percentile, take_turns
from page_parts import load_limits
from random_queue import simulate
from serving_page import to_page, to_verdict
from traffic import cyclic, draw_batches, zipf_shares
from vits import count_flops, random_bundles

from lspt_serve.models import Backbone


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([5, 1, 3, 2, 4], 0.5) == 3
    assert percentile([5, 1, 3, 2, 4], 0.99) == 5
    assert percentile([*range(100, 0, -1)], 0.99) == 99


def test_a_ratio_is_that_of_a_round() -> None:
    assert paired_ratio([2, 9, 40], [1, 3, 40]) == 2  # of medians it would be 3


def test_generations_of_a_cpu_have_names_of_their_own() -> None:
    lines = ["processor\t: 0", "cpu family\t: 25", "model\t\t: 17", "model name\t: AMD EPYC"]
    other = ["processor\t: 1", "cpu family\t: 26", "model\t\t: 2", "model name\t: AMD EPYC"]
    both = "\n".join([*lines, "", *other, ""])

    assert name_cpu(both) == "AMD EPYC, family 25, model 17"
    assert name_cpu("processor: 0\nmodel name: ARMv7\n") == "ARMv7"
    assert name_cpu("processor: 0\nBogoMIPS: 50\n") == platform.machine()


def test_traffic_after_zipf() -> None:
    np.testing.assert_allclose(zipf_shares(3), [6 / 11, 3 / 11, 2 / 11])
    rows = [task for batch in draw_batches("zipf", 3, 8, 500) for task in batch]
    np.testing.assert_allclose(np.bincount(rows) / len(rows), zipf_shares(3), atol=0.03)


def test_patterns_of_traffic() -> None:
    identical = draw_batches("identical", 10, 4, 50)
    assert {len(set(batch)) for batch in identical} == {1}
    assert {batch[0] for batch in identical} == set(range(10))
    assert {len(set(batch)) for batch in draw_batches("distinct", 4, 4, 50)} == {4}
    uniform = draw_batches("uniform", 4, 8, 500)
    rows = [task for batch in uniform for task in batch]
    np.testing.assert_allclose(np.bincount(rows) / len(rows), [0.25] * 4, atol=0.03)
    assert uniform == draw_batches("uniform", 4, 8, 500)


def test_each_task_comes_after_the_other() -> None:
    assert list(islice(cyclic(3, 2), 4)) == [[0, 1], [2, 0], [1, 2], [0, 1]]


def test_arms_take_turns() -> None:
    calls: list[tuple[str, int]] = []
    prepared: list[tuple[str, int]] = []

    seconds = take_turns(
        {name: lambda number, name=name: calls.append((name, number)) for name in "ab"},  # type: ignore[misc]
        max_rounds=2,
        budget_s=60,
        prepare=lambda name, number: prepared.append((name, number)),
    )

    assert calls == prepared == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 2, "b": 2}


def test_no_round_begins_when_time_is_up_but_there_are_three() -> None:
    seconds = take_turns({"a": lambda number: None}, max_rounds=10, budget_s=0)
    assert len(seconds["a"]) == 3


def test_a_quick_arm_is_called_several_times_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    calls = []

    def arm(number: int) -> None:
        nonlocal now
        calls.append(number)
        now += 0.25

    seconds = take_turns({"a": arm}, max_rounds=1, budget_s=60, min_turn_s=1.0)

    assert calls == [0, 1, 1, 1, 1]
    assert seconds == {"a": [0.25]}


def test_an_arm_that_differs_ends_the_script() -> None:
    assert check_equal("arm", 1e-3, 1e-3) == 1e-3
    for error in (2e-3, math.nan):
        with pytest.raises(SystemExit, match="arm: answers differ by"):
            check_equal("arm", error, 1e-3)


@pytest.mark.parametrize(
    ("limit", "measured", "line"),
    [
        ("at least", 2.0, "wanted at least 2.5 ms, measured 2 ms: missed by 0.5 ms (20.0%) (why)."),
        ("at least", 2.5, "wanted at least 2.5 ms, measured 2.5 ms: reached (why)."),
        ("at most", 2.5, "wanted at most 2.5 ms, measured 2.5 ms: reached (why)."),
        ("at most", 5.0, "wanted at most 2.5 ms, measured 5 ms: missed by 2.5 ms (100.0%) (why)."),
        ("at most", None, "wanted at most 2.5 ms; not measured: why."),
        (
            "at least",
            2.49925,
            "wanted at least 2.5 ms, measured 2.499 ms: missed by 0.00075 ms (0.03%) (why).",
        ),
        (
            "at most",
            2.50001,
            "wanted at most 2.5 ms, measured 2.50001 ms: missed by 1e-05 ms (0.0004%) (why).",
        ),
    ],
)
def test_a_target_says_whether_it_was_reached(
    limit: str, measured: float | None, line: str
) -> None:
    target = Target("speed", limit, 2.5, measured, "why")
    assert to_verdict("speed", target.record, {"speed": "ms"}) == f"- **speed**: {line}"
    assert target.record["reached"] == ("reached (why)" in line)


def test_misses_come_first_on_the_page() -> None:
    targets = [Target("speed", "at least", 2, 1, "why"), Target("memory", "at most", 2, 1)]
    machine = {"cores": 2, "cpu": "a CPU", "threads": 2, "gpu": None, "load": 0, "versions": {}}
    records = {each.name: each.record for each in targets}
    report = {"quick": True, "machine": machine, "rows": [], "targets": records}

    _, missed, section = to_page({"beside": report}).split("\n## ")

    line = "- **speed**: wanted at least 2 x, measured 1 x: missed by 1 x (50.0%) (why)."
    assert missed.splitlines()[2:] == [line]
    assert line in section
    assert "- **memory**: wanted at most 2 x, measured 1 x: reached." in section


def test_what_limits_a_target_is_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "engines_limits.md"
    assert load_limits(path, {}) == {}
    path.write_text("## bf16\n\nThe memory.\n\n## int8\n\n")
    assert load_limits(path, {"bf16": {}, "int8": {}}) == {"bf16": "The memory."}
    with pytest.raises(SystemExit, match=r"engines_limits.md: no such target: int8"):
        load_limits(path, {"bf16": {}})


def test_flops_are_those_of_the_products(tiny_backbone: Backbone) -> None:
    d, n, blocks, p, h = 24, 16, 3, 10, 3  # p prompts, a coder of width h

    def of_block(tokens: int, wanted: int) -> int:  # qkv; q k^T and its product with v; the rest
        return 2 * tokens * d * 3 * d + 4 * wanted * tokens * d + 2 * wanted * d * (d + 8 * d)

    patches = 2 * n * (3 * 8 * 8) * d
    coder = (blocks - 1) * 2 * p * (d * h + 2 * h * 4 * h + h * d)
    (bundle,) = random_bundles(tiny_backbone, 1)

    assert count_flops(tiny_backbone, None) == patches + blocks * of_block(1 + n, 1 + n)
    tokens = 1 + p + n
    prompted = (blocks - 1) * of_block(tokens, tokens) + of_block(tokens, 1)  # CLS alone is pooled
    assert count_flops(tiny_backbone, bundle) == patches + prompted + coder


def test_a_random_queue_waits_as_pollaczek_and_khinchine_have_it() -> None:
    taken = simulate(5.0, 0.1)  # half of the time at work: S + rho S / (2 (1 - rho))

    assert sum(taken) / len(taken) == pytest.approx(0.15, rel=0.02)
    assert min(taken) == pytest.approx(0.1)
