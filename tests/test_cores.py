import os
from pathlib import Path

import pytest

from lspt_serve import cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(cores.THREADS, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")


@pytest.mark.parametrize(
    ("quota", "told", "limit"),
    [
        (None, None, None),
        ("max 100000", None, None),
        ("200000 100000", None, 2),
        ("150000 100000", None, 2),  # rounded up
        ("1600000 100000", None, None),  # more than there are
        ("200000 100000", "4", 4),  # who says it knows
        (None, "0", None),
        (None, "many", None),
        (None, "16", None),
    ],
)
def test_cores_are_those_of_the_variable_or_the_quota(
    quota: str | None, told: str | None, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quota:
        cores.QUOTA.write_text(quota + "\n")
    if told:
        monkeypatch.setenv(cores.THREADS, told)

    assert cores.core_limit() == limit
    assert cores.usable_cores() == (limit or 8)
    assert cores.server_cores() == (2 if quota in ("200000 100000", "150000 100000") else 8)


@pytest.mark.parametrize(("told", "limit"), [(None, 3), ("2", 2), ("4", 3)])
def test_they_are_no_more_than_the_process_may_run_on(
    told: str | None, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it may not run on all, engines are told: they would count those of the machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 5, 6}, raising=False)
    if told:
        monkeypatch.setenv(cores.THREADS, told)

    assert cores.core_limit() == cores.usable_cores() == limit
