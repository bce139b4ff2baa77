"""The proofs of reliability on toys: what they find in servers that are well, and in broken."""

import asyncio
import json
import math
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attack_fuzz
import faults_clock
import faults_disk
import numpy as np
import peers_arms
import proof_page
import prove_faults
import prove_load
import pytest
from attack_images import create_bombs, png
from attack_inputs import FEEDS, bundle_seeds, feed_image, image_seeds
from attack_opens import HOOK, find_strays, read_opened
from attack_requests import Attack, all_attacks, build, send_all
from attack_tampered import COUNT, rename, tamper
from common import Target
from faults_worker import longest_gap
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
from proof_scene import Scene, with_hook
from proof_server import Server
from proof_tasks import Answers, answer_all, check_apart, create_images, create_versions
from proof_traffic import Load, Run, Seen, Shot, poisson, run_load
from toys import export_once, random_bundle

from lspt_serve.bundle import MANIFEST, Bundle, load_bundle, save_bundle
from lspt_serve.errors import LSPTError
from lspt_serve.models import Backbone
from lspt_serve.runtime import OnnxEngine, PromptStore

ANSWERS: Answers = {
    (0, "a", 1): np.array([1, 2], np.float32),
    (0, "a", 2): np.array([3, 1], np.float32),
    (0, "b", 1): np.array([5, 7], np.float32),
}
LIVES: Lives = {("a", 1): (0, 100), ("a", 2): (100, math.inf), ("b", 1): (0, 50)}
Respond = Callable[[str, bytes], tuple[int, dict[str, str], bytes]]


@contextmanager
def toy_server(respond: Respond) -> Iterator[int]:
    """Answers each request with status, headers and body; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, answer = respond(self.path, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Transfer-Encoding" not in headers:
                self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def to_body(task: str, version: int, logits: Any) -> bytes:
    """As the service answers, best first."""
    order = np.argsort(-np.array(logits))
    predictions = [{"label": f"l{i}", "score": float(logits[i]), "index": int(i)} for i in order]
    return json.dumps({"task": task, "version": version, "predictions": predictions}).encode()


def seen(
    task: str, body: bytes, *, sent: float = 10.0, received: float = 10.1, status: int = 200
) -> Seen:
    return Seen(0, task, sent, sent, received, status, body)


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
    head, reached = page.split("## Reached")
    assert "- **slow**: wanted at most 1 s, measured 2.5 s: missed (why)." in head
    assert "- **peer**: wanted at least 2 x; not measured: no network." in head
    assert reached.count("- **whole**: wanted at most 0, measured 0: reached.") == 2
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["targets"].keys() == {
        *("slow", "whole")
    }


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


def run_hooked(folder: Path, hook: str, code: str) -> str:
    """What another Python prints that began with the hook."""
    variables = {"PATH": "/usr/bin:/bin", **with_hook(folder, hook)}
    return subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    ).stdout


def test_a_file_outside_of_the_store_is_seen(tmp_path: Path) -> None:
    log, store = tmp_path / "opened", tmp_path / "store"
    store.mkdir()
    (store / "own").write_text("x")
    (tmp_path / "store-secret").write_text("x")
    code = (
        f"import json, os; os.chdir({str(store)!r}); open('own').close(); "
        "open('../store-secret').close()"
    )
    run_hooked(tmp_path / "hook", HOOK.format(path=str(log)), code)

    opened = read_opened(log)
    assert str(store / "own") in opened
    assert find_strays(opened, [store, tmp_path / "hook"]) == [str(tmp_path / "store-secret")]


def test_the_clock_of_a_process_jumps(tmp_path: Path) -> None:
    jump = tmp_path / "jump"
    code = f"import time, pathlib; a = time.time(); pathlib.Path({str(jump)!r}).write_text('86400')"
    printed = run_hooked(
        tmp_path / "hook",
        faults_clock.HOOK.format(path=str(jump)),
        f"{code}; print(time.time() - a)",
    )
    assert float(printed) == pytest.approx(86400, abs=5)


def test_a_server_that_fails_or_tells_secrets_is_found_out() -> None:
    def respond(path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if "fail" in path:
            return 500, {}, b"oh"
        return (200, {}, b"root:x:0") if "leak" in path else (404, {}, b"root:x:0")

    attacks = [Attack(name, build("POST", f"/{name}")) for name in ("fail", "leak", "fine")]
    with toy_server(respond) as port:
        answered = asyncio.run(send_all("127.0.0.1", port, attacks, secrets=[b"root:x:"]))
    assert answered.statuses == {500: 1, 200: 1, 404: 1}
    assert answered.failed == ["fail: 500"]
    assert answered.leaked == ["leak"]


def test_attacks_go_to_every_route() -> None:
    document: dict[str, Any] = {"paths": {"/tasks/{name}": {}, "/classify": {}}}
    attacks = all_attacks(document, b"image", "token")
    lines = [attack.request.split(b"\r\n", 1)[0] for attack in attacks]
    assert b"GET /tasks/../secret HTTP/1.1" in lines
    assert b"GET /tasks/..%2Fsecret HTTP/1.1" in lines
    for line in (b"PUT /tasks/task00 HTTP/1.1", b"DELETE /classify HTTP/1.1"):
        assert line in lines
    assert any(b"[" * 1000 in attack.request for attack in attacks)
    assert len({attack.name for attack in attacks}) > 200


def test_bombs_are_refused_or_decoded(tmp_path: Path) -> None:
    taken = []
    for name, data in create_bombs().items():
        try:
            feed_image(data, tmp_path)
            taken.append(name)
        except LSPTError:
            continue
    assert taken == ["PNG with 100 MB of comment"] or taken == []
    assert feed_image(png(9, 9, rows=9), tmp_path) is not None


@pytest.mark.parametrize("kind", ["bundles", "images"])
def test_seeds_of_fuzzers_are_taken(
    kind: str, make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    save_bundle(make_bundle(), tmp_path / "bundles" / "tiny")
    seeds = {"bundles": bundle_seeds(tmp_path / "bundles"), "images": image_seeds()}[kind]
    for data in seeds:
        FEEDS[kind](data, tmp_path)


def test_a_fuzzer_finds_what_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(image_seeds()):
        (corpus / str(number)).write_bytes(seed)
    report = attack_fuzz.search("images", corpus, 0.5)
    assert report["crashes"] == {}
    assert report["reasons"] > 3

    def broken(data: bytes, scratch: Path) -> object:
        return 1 / (len(data) % 7)

    monkeypatch.setattr(attack_fuzz, "FEEDS", {"images": broken})
    assert [*attack_fuzz.search("images", corpus, 0.2)["crashes"]] == [
        "ZeroDivisionError: division by zero"
    ]


def test_tampered_bundles_are_refused_by_a_store(
    tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    for number in range(COUNT):
        folder = tmp_path / f"tampered{number:02}"
        save_bundle(random_bundle(tiny_backbone, name="good"), folder)
        rename(folder / MANIFEST, folder.name)
        assert tamper(folder, number)
    save_bundle(random_bundle(tiny_backbone, name="good"), tmp_path / "good")
    graph = OnnxEngine(export_once(tiny_backbone, tmp_path_factory), device="cpu").graph
    store = PromptStore(tmp_path, graph)
    assert [task.name for task in store] == ["good"]
    assert len(store.refused) == COUNT
    assert not any(str(tmp_path) in reason for reason in store.refused.values())


def run_quick(script: Any, folder: Path, *words: object) -> dict[str, Any]:
    """A quick run against a real server; the records of its page."""
    script.main(["--quick", "--docs", str(folder), *map(str, words)])
    records: list[dict[str, Any]] = json.loads((folder / "reliability.json").read_text())
    return {record["name"]: record for record in records}


@pytest.mark.slow
def test_load_is_proved_on_a_small_model(tiny_backbone: Backbone, tmp_path: Path) -> None:
    words = ("--vit", tiny_backbone.source, "--minutes", 0.1)
    records = run_quick(prove_load, tmp_path, *words)
    assert records["1 worker(s): mixed up"]["reached"]
    assert records["1 worker(s): changes under traffic"]["measured"] == 12
    assert records["1 worker(s): failed"]["note"].startswith("of ")


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
