"""The proofs under load on toys: what they find in answers, traffic, memory and peers."""

import json
import math
import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import peers_arms
import proof_page
import prove_excess
import prove_load
import pytest
from common import Target, describe_machine
from peers_arms import Arm, read_scores
from proof_changes import (
    Change,
    Folder,
    Lives,
    find_failures,
    find_fault,
    judge,
    plan_changes,
    tasks_at,
)
from proof_memory import growth
from proof_server import Server
from proof_spent import Spent, Totals
from proof_tasks import answer_all, check_apart, create_images, create_versions
from proof_traffic import Load, Run, Shot, evenly, generator, poisson, run_load
from toys import export_once, random_bundle
from toys_proofs import ANSWERS, run_quick, seen, to_body, toy_server

from lspt_serve.bundle import Bundle, load_bundle
from lspt_serve.models import Backbone
from lspt_serve.runtime import OnnxEngine

DOCS = Path(__file__).resolve().parents[1] / "docs"
LIVES: Lives = {("a", 1): (0, 100), ("a", 2): (100, math.inf), ("b", 1): (0, 50)}


def test_a_right_answer_has_no_fault() -> None:
    assert find_fault(seen("a", to_body("a", 1, [1, 2])), ANSWERS, LIVES) is None
    almost = to_body("a", 1, [1.0001, 1.9999])
    assert find_fault(seen("a", almost), ANSWERS, LIVES) is None


@pytest.mark.parametrize(
    ("body", "sent", "fault"),
    [
        (to_body("a", 1, [5, 7]), 10.0, "a@1 answered for another task, version or image"),
        (to_body("a", 1, [3, 1]), 10.0, "a@1 answered for another task, version or image"),
        (to_body("a", 1, [1, math.nan]), 10.0, "a@1 answered for another task, version or image"),
        (to_body("a", 1, [1, 2, 3]), 10.0, "a@1 answered for another task, version or image"),
        (to_body("b", 1, [5, 7]), 10.0, "asked a, answered by b"),
        (to_body("a", 3, [1, 2]), 10.0, "a never had a version 3"),
        (to_body("a", 2, [3, 1]), 10.0, "a@2 was not there"),
        (to_body("a", 1, [1, 2]), 104.0, "a@1 was not there"),
    ],
)
def test_a_wrong_answer_is_found(body: bytes, sent: float, fault: str) -> None:
    wrong = seen("a", body, sent=sent, received=sent + 0.1)
    assert find_fault(wrong, ANSWERS, LIVES) == fault
    assert judge([wrong, wrong], ANSWERS, LIVES) == {fault: 2}


def test_a_server_may_take_three_seconds_to_see_a_change() -> None:
    old, new = to_body("a", 1, [1, 2]), to_body("a", 2, [3, 1])
    assert find_fault(seen("a", old, sent=102.9, received=103), ANSWERS, LIVES) is None
    assert find_fault(seen("a", new, sent=99.9, received=100.1), ANSWERS, LIVES) is None


def test_a_task_that_is_gone_may_be_unknown_and_nothing_else_may() -> None:
    def failures(sent: float, received: float, status: int = 404) -> int:
        return find_failures([seen("b", b"", sent=sent, received=received, status=status)], LIVES)[
            status
        ]

    assert failures(10, 11) == 1
    assert failures(1, 2) == 0  # it came a second ago
    assert failures(49, 51) == 0  # it went meanwhile
    assert failures(49, 51, status=500) == 1
    assert failures(10, 11, status=0) == 1


def test_changes_are_spread_and_leave_as_many_tasks_as_before() -> None:
    names = [f"t{number}" for number in range(6)]
    changes = plan_changes(names, 3, 30.0)
    assert [(each.at_s, each.kind, each.task) for each in changes[:3]] == [
        (0, "add", "new0000"),
        (pytest.approx(10 / 3), "replace", "t0"),
        (pytest.approx(20 / 3), "remove", "t5"),
    ]
    tasks = tasks_at(names, changes)
    rng = random.Random(0)
    assert {tasks.draw(rng, 0.0) for _ in range(200)} == {*names}
    assert {tasks.draw(rng, 29.0) for _ in range(300)} == {
        *("t0", "t1", "t2", "new0000", "new0001", "new0002")
    }
    with pytest.raises(ValueError, match="4 changes need at least 8 tasks, got 6"):
        plan_changes(names, 4, 30.0)


def test_a_folder_changes_as_planned(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundles = {
        (each.name, each.manifest.version): each
        for each in create_versions(make_bundle(), [("a", 1), ("a", 2), ("b", 1)])
    }
    folder = Folder(tmp_path, bundles)
    for change in (
        *(Change(0, "add", "a", 1), Change(0, "add", "b", 1)),
        *(Change(0, "replace", "a", 2), Change(0, "remove", "b", 1)),
    ):
        folder.make(change)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert load_bundle(tmp_path / "a").manifest.version == 2
    open_ended = {version for version, (_, last) in folder.lives.items() if last == math.inf}
    assert open_ended == {("a", 2)}
    assert folder.lives["a", 1][1] >= folder.lives["a", 2][0]
    assert folder.done == 4


def test_references_are_those_of_the_engine_and_far_apart(
    tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain = random_bundle(tiny_backbone)
    engine = OnnxEngine(export_once(tiny_backbone, tmp_path_factory), device="cpu")
    versions = [*create_versions(plain, [("a", 1), ("a", 2), ("b", 1)])]
    answers = answer_all(engine, create_images(2, 40), versions)
    assert len(answers) == 6
    assert check_apart(answers) > 0.1
    with pytest.raises(SystemExit, match="a mix-up would not be seen"):
        check_apart({**answers, (9, "c", 1): answers[0, "a", 1] + np.float32(1e-3)})


def load(port: int, shots: list[Shot], **options: Any) -> Load:
    return Load("127.0.0.1", port, [b"image"], shots, **options)


def test_a_server_that_mixes_up_is_found_out_by_traffic() -> None:
    count = 0

    def respond(path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        nonlocal count
        count += 1
        assert body == b"image"
        wrong = [5, 7] if count % 4 == 0 else [1, 2]
        return 200, {}, to_body("a", 1, wrong)

    with toy_server(respond) as port:
        run = run_load(load(port, [Shot(0, 0, "a")] * 20))
    lives: Lives = {("a", 1): (0, math.inf)}
    assert judge(run.seen, ANSWERS, lives).total() == 5
    assert len(run.answered) == 20
    assert not find_failures(run.seen, lives)


def test_traffic_tells_what_is_refused_and_what_gets_no_answer() -> None:
    with toy_server(lambda path, body: (503, {"Retry-After": "1"}, b"{}")) as port:
        (refused,) = run_load(load(port, [Shot(0, 0, "a")])).seen
    (lost,) = run_load(load(port, [Shot(0, 0, "a")])).seen
    assert (refused.status, refused.retry_after) == (503, "1")
    assert (lost.status, lost.retry_after) == (0, None)
    assert b"Connect" in lost.body


def test_open_loop_does_not_wait_for_answers_and_closed_loop_does() -> None:
    def slow(path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.2)
        return 200, {}, b"{}"

    with toy_server(slow) as port:
        run = run_load(load(port, [Shot(0.01 * number, 0, "a") for number in range(10)]))
        closed = run_load(load(port, [Shot(0, 0, "a")], clients=2, seconds=0.5))
    assert max(each.sent - run.start for each in run.seen) < 0.2
    assert all(each.latency_s >= 0.2 for each in run.seen)
    assert len(closed.seen) == 6
    assert len(closed.answered) > closed.per_s * 0.5  # those after the end do not count
    assert closed.whole_per_s == pytest.approx(6 / 0.6, rel=0.2)


def test_answers_in_chunks_are_read() -> None:
    chunked = {"Transfer-Encoding": "chunked"}
    with toy_server(lambda path, body: (200, chunked, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")) as port:
        run = run_load(load(port, [Shot(0, 0, "a"), Shot(0.1, 0, "a")]))
    assert [each.body for each in run.seen] == [b"abcde"] * 2


def test_poisson_traffic_comes_at_its_rate() -> None:
    shots = poisson(100, 50, lambda rng, at_s: (0, "a"), seed=0)
    gaps = np.diff([shot.at_s for shot in shots])
    assert len(shots) == pytest.approx(5000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential


def test_even_traffic_comes_at_equal_distances() -> None:
    shots = evenly(8, 0.5, lambda rng, at_s: (0, "a"), seed=0)

    assert [shot.at_s for shot in shots] == [0, 0.125, 0.25, 0.375]


def test_script_that_is_stopped_does_not_wait_for_its_traffic() -> None:
    def stop() -> None:
        shots = [Shot(60.0, 0, "a")]  # in a minute
        with generator() as start:
            running = start(Load("127.0.0.1", 1, [b"image"], shots, start=time.monotonic()))
            while not running.running():
                time.sleep(0.01)
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        stop()
    assert time.monotonic() - started < 50


def test_what_a_server_spends_is_what_its_totals_grow_by() -> None:
    before = Totals(at=100, loops=1, workers=2, engine=3, images=10, batches=5)
    after = Totals(at=110, loops=3, workers=17, engine=9, images=90, batches=25)

    spent = before.until(after)

    assert spent == Spent(loops=0.2, workers=1.5, rows=4, batch_ms=300)
    assert str(spent) == "batches of 4.0 in 300 ms, event loops 0.20 of 1.50 cores"


def test_memory_that_grows_is_seen() -> None:
    assert growth([(s, 100) for s in range(100)]) == pytest.approx(0, abs=1e-9)
    assert growth([(s, 1000 + 5 * s) for s in range(101)]) == pytest.approx(250 / 1250)
    early = [(s, min(1000 + 50 * s, 2000)) for s in range(100)]
    assert growth(early) == pytest.approx(0, abs=1e-9)


def test_results_take_the_place_of_those_of_the_same_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--quick", "--docs", str(tmp_path)]
    missed = (Target("slow", "at most", 1, 2.5, "why"), "s")
    good = (Target("whole", "at most", 0, 0), "")
    unknown = (Target("peer", "at least", 2, None, "no network"), "x")
    for script, targets in (("one", [missed]), ("two", [good, unknown]), ("one", [missed, good])):
        proof_page.finish(script, targets, proof_page.parse_proof("Proofs.", words))
    records = json.loads((tmp_path / "reliability.json").read_text())
    assert [(each["name"], each["command"], each["reached"]) for each in records] == [
        ("slow", "python benchmarks/one.py", False),
        ("whole", "python benchmarks/one.py", True),
        ("whole", "python benchmarks/two.py", True),
        ("peer", "python benchmarks/two.py", False),
    ]
    page = (tmp_path / "reliability.md").read_text()
    head, one, two = page.split("\n## ")[1:]
    cpu = records[0]["machine"]["cpu"]
    assert f"- **slow**, {cpu}: wanted at most 1 s, measured 2.5 s (why)." in head
    assert f"- **peer**, {cpu}: wanted at least 2 x; not measured: no network." in head
    assert "whole" not in head
    assert "| slow | at most 1 s | 2.5 s | **missed**; why |" in one
    assert "| peer | at least 2 x | - | **missed**; no network |" in two
    assert all("| whole | at most 0 | 0 |  |" in section for section in (one, two))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["targets"].keys() == {
        *("slow", "whole")
    }


def test_results_of_another_cpu_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--quick", "--docs", str(tmp_path), "--out", str(tmp_path)]
    machine = describe_machine()
    for cpu, measured in (("one", 1), ("other", 2), ("one", 3)):
        monkeypatch.setattr(proof_page, "describe_machine", lambda cpu=cpu: {**machine, "cpu": cpu})
        targets = [(Target("slow", "at most", 5, measured), "s")]
        args = proof_page.parse_proof("Proofs.", words)
        proof_page.finish("script", targets, args, details=measured)

    assert json.loads((tmp_path / "script.json").read_text()) == {"one": 3, "other": 2}
    section = (tmp_path / "reliability.md").read_text().split("\n## ")[2]
    assert section.count("python benchmarks/script.py") == 1
    assert section.index("cores of one") < section.index("| slow | at most 5 s | 3 s |")
    assert section.index("cores of other") < section.index("| slow | at most 5 s | 2 s |")


def test_the_page_is_made_of_full_runs() -> None:
    records = proof_page.load_records(DOCS)

    assert (DOCS / "reliability.md").read_text("utf-8") == proof_page.to_page(
        records, proof_page.load_peers(proof_page.HERE)
    )
    assert {Path(record["command"]).name for record in records} == {
        "prove_attack.py",
        "prove_excess.py",
        "prove_faults.py",
        "prove_load.py",
        "prove_peers.py",
    }
    assert not any(record["quick"] for record in records)


def test_scores_are_read_whichever_server_gave_them() -> None:
    ours = to_body("photo", 1, [0.1, 0.7, 0.2])
    for body in (ours, b"[[0.1, 0.7, 0.2]]", b'{"scores": [0.1, 0.7, 0.2]}'):
        np.testing.assert_allclose(read_scores(body), [0.1, 0.7, 0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([[0.2, 0.8]], None),
        ([[0.8, 0.2]], "BentoML: answers differ by 6.00e-01"),
        ([[0.25, 0.75]], "BentoML: answers differ by 5.00e-02"),
        ([[0.2, 0.4, 0.4]], r"BentoML: \(3,\) scores, wanted \(2,\)"),
    ],
)
def test_a_peer_that_answers_otherwise_ends_the_script(
    scores: Any, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Material(peers_arms.Material):
        def scores(self, image: int) -> Any:
            return np.array([0.2, 0.8], np.float32)

    nothing: Any = None
    material = Material("vit", Path(), nothing, nothing, [b"image"])

    def start(load: Load) -> "Future[Run]":
        answer: Future[Run] = Future()
        answer.set_result(Run([seen("photo", json.dumps(scores).encode())], 0.0, 1.0, 0.0))
        return answer

    server = Server("127.0.0.1", 1, nothing, Path())
    arm = Arm("BentoML", server, "/classify", "form", "images")
    if said is None:
        assert arm.check(start, material) == 0
        return
    with pytest.raises(SystemExit, match=said):
        arm.check(start, material)


@pytest.mark.slow
def test_load_is_proved_on_a_small_model(tiny_backbone: Backbone, tmp_path: Path) -> None:
    words = ("--vit", tiny_backbone.source, "--minutes", 0.1)
    records = run_quick(prove_load, tmp_path, *words)
    assert records["1 worker(s): mixed up"]["reached"]
    assert records["1 worker(s): changes under traffic"]["measured"] == 12
    assert "batches of" in records["1 worker(s): goodput at 3x"]["note"]
    assert records["1 worker(s): failed"]["note"].startswith("of ")


@pytest.mark.slow
def test_excess_is_proved_on_a_small_model(tiny_backbone: Backbone, tmp_path: Path) -> None:
    records = run_quick(prove_excess, tmp_path, "--vit", tiny_backbone.source)

    name = Path(tiny_backbone.source).stem
    assert records[f"{name}: mixed up"]["reached"]
    assert "at capacity" in records[f"{name}: goodput at 3x"]["note"]
