"""The proofs of faults on toys: disks, clocks and folders that fail."""

from pathlib import Path

import faults_clock
import faults_disk
import prove_faults
import pytest
from faults_worker import longest_gap
from proof_scene import Scene
from proof_traffic import Run
from toys_proofs import ANSWERS, run_hooked, run_quick, seen, to_body

from lspt_serve.models import Backbone


def test_the_longest_gap_is_between_answers() -> None:
    answers = [seen("a", b"", received=received) for received in (9.0, 11.0, 15.5, 16.0)]
    assert longest_gap(Run(answers, 5.0, 12.0, 0.0), since=10.0) == 4.5
    assert longest_gap(Run(answers[:1], 5.0, 12.0, 0.0), since=10.0) == 7.0


def test_a_small_disk_gets_full(tmp_path: Path) -> None:
    with faults_disk.small_disk(tmp_path / "disk") as reason:
        if reason:
            pytest.skip(f"no file system can be mounted here: {reason}")
        faults_disk.fill(tmp_path / "disk")
        assert (tmp_path / "disk" / "filler").stat().st_size > 10 * 2**20
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "disk" / "more").write_bytes(bytes(8192))
    assert not [*(tmp_path / "disk").iterdir()]


def test_the_clock_of_a_process_jumps(tmp_path: Path) -> None:
    jump = tmp_path / "jump"
    code = f"import time, pathlib; a = time.time(); pathlib.Path({str(jump)!r}).write_text('86400')"
    printed = run_hooked(
        tmp_path / "hook",
        faults_clock.HOOK.format(path=str(jump)),
        f"{code}; print(time.time() - a)",
    )
    assert float(printed) == pytest.approx(86400, abs=5)


@pytest.mark.slow
def test_a_deleted_folder_is_survived(tiny_backbone: Backbone, tmp_path: Path) -> None:
    words = ("--vit", tiny_backbone.source, "--fault", "store")
    records = run_quick(prove_faults, tmp_path, *words)
    assert [*records] == [
        "folder of bundles deleted: failed",
        "folder of bundles deleted: wrong answers",
    ]
    assert all(record["reached"] for record in records.values())


def test_a_scene_judges_wrong_answers(tmp_path: Path) -> None:
    scene = Scene(tmp_path, ["a"], [b"image"], ANSWERS)
    run = Run([seen("a", to_body("a", 1, [5, 7])), seen("a", b"", status=500)], 0.0, 1.0, 0.0)
    failed, wrong = scene.judge(run)
    assert failed == {500: 1}
    assert wrong.total() == 1
