"""lspt classify, in process and against a real server."""

import asyncio
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from rich.console import Console
from toys import coloured, encoded
from toys_api import Api
from toys_cli import Command, Ended
from toys_server import create_served, served

from lspt_serve.cli import main
from lspt_serve.cli.answers import print_tables
from lspt_serve.client import AsyncClient
from lspt_serve.models import Backbone
from lspt_serve.preprocess import FORMATS
from lspt_serve.runtime import Classifier, OnnxEngine, PromptStore
from lspt_serve.schemas import Item, LabelScore

RNG = np.random.default_rng(0)
PNG = encoded(coloured("red", RNG, side=40))
JPEG = encoded(coloured("blue", RNG, side=40), "JPEG")
BUSY = {"error": {"code": "overloaded", "message": "busy", "request_id": "a", "item": None}}


@pytest.fixture(scope="module")
def work(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph, two bundles and some images, one of which is broken."""
    folder = create_served(tiny_backbone, tmp_path_factory)
    (folder / "photos" / "deep").mkdir(parents=True)
    (folder / "photos" / "b.png").write_bytes(PNG)
    (folder / "photos" / "deep" / "a.JPG").write_bytes(JPEG)
    (folder / "photos" / "c.gif").write_bytes(encoded(coloured("green", RNG), "GIF"))
    (folder / "photos" / "half.png").write_bytes(PNG[:60])
    (folder / "photos" / "notes.txt").write_text("no image")
    return folder


FILES = ["photos/b.png", "photos/c.gif", "photos/deep/a.JPG", "photos/half.png"]


@pytest.fixture(scope="module")
def api(work: Path) -> Api:
    engine = OnnxEngine(work / "graph", device="cpu")
    return Api(Classifier(engine, PromptStore(work / "bundles", engine.graph), max_batch_size=4))


@pytest.fixture
def run(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in the folder of the graph, the bundles and the images."""
    monkeypatch.chdir(work)
    monkeypatch.setenv("LSPT_ENGINE", "onnxruntime")
    monkeypatch.setenv("COLUMNS", "120")

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lspt", "classify", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Ended(ended.value.code or 0, printed.out, printed.err)

    return run


def check_error(ended: Ended, message: str) -> None:
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err.splitlines()[-1]
    assert ended.err.splitlines()[-1].startswith("error: ")


def close(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [best | {"score": pytest.approx(best["score"], abs=1e-5)} for best in predictions]


def wanted(api: Api, work: Path, tasks: list[str], **asked: Any) -> list[dict[str, Any]]:
    """What the API answers for each of FILES by each task, one by one."""
    rows: list[dict[str, Any]] = []
    for file in FILES:
        for task in tasks:
            answer = api.classify((work / file).read_bytes(), task=task, **asked).json()
            if "error" in answer:
                failure = {k: v for k, v in answer["error"].items() if k != "request_id"}
                rows.append({"file": file, "task": task, "error": failure})
            else:
                best = close(answer["predictions"])
                rows.append({"file": file, "task": task, "version": 1, "predictions": best})
    return rows


@pytest.mark.parametrize(
    "asked", [{}, {"top_k": 1}, {"activation": "sigmoid", "threshold": 0.5}, {"activation": "none"}]
)
def test_answers_are_those_of_the_api(
    run: Command, api: Api, work: Path, asked: dict[str, Any]
) -> None:
    options = [w for k, v in asked.items() for w in (f"--{k.replace('_', '-')}", v)]

    ended = run("photos", "--task", "colour", "--task", "parity", "--json", *options)

    assert ended.code == 0
    assert json.loads(ended.out) == wanted(api, work, ["colour", "parity"], **asked)
    assert ended.err.splitlines()[-1].startswith("4 image(s), 8 answer(s), 2 failed; ")


def flat(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As in files of rows."""
    names = ("file", "task", "version", "rank", "label", "score", "index", "error", "message")
    rows = []
    for record in records:
        start = {name: record.get(name) for name in names[:3]}
        if "error" in record:
            failure = {"error": record["error"]["code"], "message": record["error"]["message"]}
            rows.append(dict.fromkeys(names) | start | failure)
        elif not record["predictions"]:
            rows.append(dict.fromkeys(names) | start)
        for rank, best in enumerate(record.get("predictions", []), start=1):
            rows.append(dict.fromkeys(names) | start | {"rank": rank} | best)
    return rows


def read(path: Path) -> Any:
    """A file that --out wrote, as records or rows of them."""
    if path.suffix == ".json":
        return json.loads(path.read_text("utf-8"))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    kinds = {"version": int, "rank": int, "score": float, "index": int}
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {name: kinds.get(name, str)(text) if text else None for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_a_file_holds_every_answer(
    run: Command, api: Api, work: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"answers{suffix}"
    asked = {"activation": "sigmoid", "threshold": 0.55}

    words = ["--activation", "sigmoid", "--threshold", 0.55, "--out", out]
    ended = run("photos", "--task", "colour", *words)

    assert (ended.code, ended.out) == (0, "")
    records = wanted(api, work, ["colour"], **asked)
    assert read(out) == (records if suffix.startswith(".json") else flat(records))
    assert [*tmp_path.iterdir()] == [out]


def test_parquet_of_many_rows_is_written_bit_by_bit(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lspt_serve.cli.answers.PARQUET_ROWS", 5)
    words = ["photos", "--task", "colour", "--out"]

    run(*words, tmp_path / "a.parquet")
    run(*words, tmp_path / "a.csv")

    assert parquet.ParquetFile(tmp_path / "a.parquet").num_row_groups == 2
    rows = [row | {"score": pytest.approx(row["score"])} for row in read(tmp_path / "a.csv")]
    assert read(tmp_path / "a.parquet") == rows


def test_a_table_shows_the_best_label_or_what_is_wrong(run: Command, api: Api, work: Path) -> None:
    ended = run("photos", "--task", "colour")

    lines = ended.out.splitlines()
    assert lines[0].split() == ["file", "task", "label", "score"]
    for line, row in zip(lines[1:4], wanted(api, work, ["colour"])[:3], strict=True):
        best = row["predictions"][0]
        file, task, label, score = line.split()
        assert (file, task, label) == (row["file"], "colour", best["label"])
        assert float(score) == pytest.approx(best["score"].expected, abs=6e-4)
    assert "image does not decode" in lines[4]


def test_a_table_says_when_no_label_is_over_the_threshold(run: Command) -> None:
    ended = run("photos/b.png", "--task", "colour", "--threshold", 2)

    assert "none over the threshold" in ended.out
    assert ended.code == 0


def test_words_of_a_bundle_do_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    best = LabelScore(index=0, label="x\x1b]0;mine\x07y", score=0.5)
    with print_tables(nullcontext) as write:
        write([Item(image=0, file="a\x1b[2Jb", task="colour", version=1, predictions=[best])])

    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert r"a\x1b[2Jb" in printed
    assert r"x\x1b]0;mine\x07y" in printed


def test_many_answers_are_several_tables(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lspt_serve.cli.answers.TABLE_ROWS", 3)

    ended = run("photos", "--task", "colour", "--task", "parity")

    assert sum(line.split()[:2] == ["file", "task"] for line in ended.out.splitlines()) == 2
    assert sum("photos/" in line for line in ended.out.splitlines()) == 8


def test_a_bar_is_on_a_terminal_alone_and_gone_at_the_end(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["photos", "--task", "colour", "--json"]
    piped = run(*words)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    plain = Console(stderr=True, color_system=None)
    monkeypatch.setattr(import_module("lspt_serve.cli.classify"), "console", plain)

    shown = run(*words)

    assert re.fullmatch(r"4 image\(s\), .* images/s\n", piped.err)
    *_, bar, _, summary = shown.err.splitlines()
    assert re.match(r"\x1b\[2Kclassifying ━+ 4/4 \d+\.\d images/s ", bar)
    assert summary.startswith("\x1b[1A\x1b[2K4 image(s), ")  # in the place of the bar
    assert [row["file"] for row in json.loads(shown.out)] == FILES


def test_files_come_in_the_order_that_they_are_given_whatever_their_suffix(run: Command) -> None:
    ended = run("photos/deep", "photos/notes.txt", "photos/b.png", "--task", "colour", "--json")

    files = [row["file"] for row in json.loads(ended.out)]
    assert files == ["photos/deep/a.JPG", "photos/notes.txt", "photos/b.png"]


def test_stdin_is_an_image(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(PNG)

    monkeypatch.setattr("sys.stdin", Stdin)

    from_stdin, from_file = (
        json.loads(run(name, "--task", "colour", "--json").out) for name in ("-", "photos/b.png")
    )

    assert from_stdin == [from_file[0] | {"file": "-"}]


def test_a_file_that_is_not_there_is_an_error_in_its_place(run: Command) -> None:
    ended = run("photos/b.png", "photos/none.png", "--task", "colour", "--json")

    good, bad = json.loads(ended.out)
    assert ended.code == 0
    assert good["predictions"]
    assert bad["error"]["code"] == "unreadable"
    assert "No such file" in bad["error"]["message"]


def test_if_nothing_could_be_classified_the_exit_code_is_1(run: Command) -> None:
    ended = run("photos/notes.txt", "photos/half.png", "--task", "colour", "--json")

    assert ended.code == 1
    codes = [row["error"]["code"] for row in json.loads(ended.out)]
    assert codes == ["unsupported_format", "undecodable"]


def test_more_tasks_than_a_request_takes_are_asked_in_turn(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["photos", "--task", "colour", "--task", "parity", "--task", "colour@1", "--json"]
    whole = json.loads(run(*words).out)
    monkeypatch.setattr("lspt_serve.cli.classifying.TASKS_AT_ONCE", 2)

    split = json.loads(run(*words).out)

    assert [(row["file"], row["task"]) for row in split] == [
        (row["file"], row["task"]) for row in whole
    ]
    for row, same in zip(split, whole, strict=True):
        assert row == same | (
            {"predictions": close(same["predictions"])} if "predictions" in same else {}
        )


def test_names_that_are_no_text_do_no_harm(run: Command, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    names = [b"\xff.png", "é.png".encode(), b"[red]x.png", b'a,b\n"c".png', b"=1.png"]
    for name in names:
        Path(os.fsdecode(os.fsencode(odd) + b"/" + name)).write_bytes(PNG)

    for suffix in (".csv", ".json", ".jsonl", ".parquet"):
        out = tmp_path / f"answers{suffix}"
        assert run(odd, "--task", "colour", "--top-k", 1, "--out", out).code == 0
        found = {Path(row["file"]).name for row in read(out)}
        assert found == {name.decode("utf-8", "replace") for name in names}
    assert "[red]x.png" in run(odd, "--task", "colour").out.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photos", "--task", "color"], "unknown task 'color'; nearest: colour"),
        (["photos", "--task", "colour@9"], "unknown version 'colour@9'"),
        (["bundles", "--task", "colour"], "no images in bundles; wanted files that end in .apng,"),
        (["photos", "--task", "colour", "--out", "a.txt"], "a .txt file; wanted .csv, .json, .js"),
        (["photos", "--task", "colour", "--out", "a"], "without a suffix; wanted .csv"),
        (["photos", "--task", "colour", "--out", "a.csv", "--json"], "both --out and --json"),
        (["photos", "--task", "x", "--url", "http://h", "--graph", "graph"], "--url is in place"),
        (["photos", "--task", "x", "--url", "h:1"], "url is 'h:1'; wanted http://HOST:PORT"),
        (["photos", "--task", "x", "--url", "http://127.0.0.1:9"], "127.0.0.1:9 does not answer"),
        (["photos", "--task", "colour", "--graph", "no"], "no/graph.json: cannot be read"),
    ],
)
def test_a_command_that_cannot_work_says_why(run: Command, words: list[str], message: str) -> None:
    check_error(run(*words), message)


def test_an_output_is_replaced_only_when_told(run: Command, tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    out.write_text("precious")
    words = ["photos", "--task", "colour", "--out", out]

    check_error(run(*words), "exists already")
    assert out.read_text() == "precious"

    assert run(*words, "--overwrite").code == 0
    assert out.read_text().startswith("file,task,version,rank,label,score,index,error,message\n")


def test_without_pyarrow_parquet_says_what_to_install(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    ended = run("photos", "--task", "colour", "--out", tmp_path / "a.parquet")

    check_error(ended, "pip install '.[parquet]'")


class Mock:
    """A mock of a server, which follows the contract as far as the command asks for it."""

    def __init__(self, answer: Callable[[int, bytes], httpx.Response]) -> None:
        self.answer = answer
        self.requests = self.now = self.most = 0

    async def handle(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            task = {"name": "colour", "version": 1, "labels": ["a"], "method": "lspt"}
            others = {"versions": [1], "aliases": {}, "resident": True}
            others |= {"metrics": None, "license": None}
            return httpx.Response(200, json=task | others)
        self.requests += 1
        number, self.now = self.requests, self.now + 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.02 / number)  # later ones are answered sooner
        self.now -= 1
        return self.answer(number, await request.aread())


@pytest.fixture
def mocked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Mock]:
    """mocked(answer): --url leads to a Mock, nothing waits.

    answer(number of the request, what it sent); images are asked for in no certain order.
    """

    def mocked(answer: Callable[[int, bytes], httpx.Response]) -> Mock:
        mock = Mock(answer)

        def client(url: str, **named: Any) -> AsyncClient:
            return AsyncClient(url, transport=httpx.MockTransport(mock.handle), **named)

        monkeypatch.setattr("lspt_serve.client.AsyncClient", client)
        monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
        return mock

    return mocked


def ok(label: str = "a", **error: Any) -> httpx.Response:
    result = error or {"version": 1, "predictions": [{"label": label, "score": 1.0, "index": 0}]}
    items = [{"image": 0, "file": "image", "task": "colour", **result}]
    timings = {"decode": 0, "engine": 0, "total": 0}
    return httpx.Response(200, json={"items": items, "request_id": "a", "timings_ms": timings})


URL = ["--task", "colour", "--url", "http://h:1"]


def test_a_bounded_number_of_requests_is_under_way_and_order_is_kept(
    run: Command, mocked: Callable[..., Mock], tmp_path: Path
) -> None:
    files = [tmp_path / f"{number:03}.png" for number in range(100)]
    for file in files:
        file.write_bytes(file.stem.encode())
    mock = mocked(lambda number, sent: ok())

    ended = run(tmp_path, *URL, "--json")

    assert [row["file"] for row in json.loads(ended.out)] == [*map(str, files)]
    assert mock.requests == 100
    assert 8 <= mock.most <= 32


def test_a_busy_server_is_asked_again(run: Command, mocked: Callable[..., Mock]) -> None:
    failure = {"code": "overloaded", "message": "busy", "item": None}
    answers = [
        httpx.Response(503, json=BUSY, headers={"Retry-After": "1"}),
        ok(error=failure),
        ok("done"),
    ]
    mock = mocked(lambda number, sent: answers[number - 1])

    ended = run("photos/b.png", *URL, "--json")

    assert mock.requests == 3
    assert json.loads(ended.out)[0]["predictions"][0]["label"] == "done"


def test_a_server_that_stays_busy_is_the_error_of_the_image(
    run: Command, mocked: Callable[..., Mock]
) -> None:
    again = {"Retry-After": "1"}
    mock = mocked(lambda number, sent: httpx.Response(503, json=BUSY, headers=again))

    ended = run("photos/b.png", "photos/c.gif", *URL, "--json")

    assert mock.requests == 2 * 9  # the first time and 8 more, of each image
    assert {row["error"]["code"] for row in json.loads(ended.out)} == {"overloaded"}
    assert ended.code == 1


def test_a_server_that_goes_away_ends_the_command_and_what_was_done_is_kept(
    run: Command, mocked: Callable[..., Mock], tmp_path: Path
) -> None:
    def answer(number: int, sent: bytes) -> httpx.Response:
        if JPEG in sent:
            raise httpx.ConnectError("refused")
        return ok()

    mocked(answer)

    ended = run("photos", *URL, "--out", tmp_path / "a.jsonl")

    check_error(ended, "http://h:1 does not answer: refused")
    said = f"the answers of 2 image(s) are in {tmp_path}/a.partial.jsonl"
    assert said in ended.err.replace("\n", "")
    assert [row["file"] for row in read(tmp_path / "a.partial.jsonl")] == FILES[:2]
    assert [path.name for path in tmp_path.iterdir()] == ["a.partial.jsonl"]
    (tmp_path / "a.partial.jsonl").write_text("precious")
    (tmp_path / "a.partial-2.jsonl").write_text("precious")

    ended = run("photos", *URL, "--out", tmp_path / "a.jsonl")

    assert "are in" in ended.err
    assert [row["file"] for row in read(tmp_path / "a.partial-3.jsonl")] == FILES[:2]
    for name in ("a.partial.jsonl", "a.partial-2.jsonl"):
        assert (tmp_path / name).read_text() == "precious"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "suffix"),
    [
        (signal.SIGINT, 130, ".csv"),
        (signal.SIGTERM, 143, ".json"),
        (signal.SIGINT, 130, ".parquet"),
    ],
)
def test_a_command_that_is_stopped_keeps_what_it_has_done(
    work: Path, tmp_path: Path, number: int, code: int, suffix: str
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(5000):
        (photos / f"{index:04}.png").hardlink_to(work / "photos" / "b.png")
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from lspt_serve.cli import main; main()"
    )
    out = tmp_path / "out" / f"a{suffix}"
    words = ["classify", str(photos), "--task", "colour", "--top-k", "1", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        cwd=work,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LSPT_ENGINE": "onnxruntime"},
    )
    begun = 1 if suffix == ".parquet" else 1000  # bytes; rows of that wait in memory
    end = time.monotonic() + 90
    while time.monotonic() < end:
        if any(path.stat().st_size >= begun for path in out.parent.glob(".a*/a*")):
            break
        time.sleep(0.05)
    time.sleep(3 if suffix == ".parquet" else 0)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    assert process.returncode == code, err
    partial = out.with_name(f"a.partial{suffix}")
    assert [*out.parent.iterdir()] == [partial]
    files = [Path(row["file"]).name for row in read(partial)]
    assert files == [f"{index:04}.png" for index in range(len(files))]
    assert 0 < len(files) < 5000
    assert err == f"stopped; the answers of {len(files)} image(s) are in {partial}\n"


def test_difficult_files_are_classified_or_an_error_in_their_place(
    run: Command, tmp_path: Path, shared_data: Path
) -> None:
    with tarfile.open(shared_data / "hard_files.tar") as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            path = tmp_path / member.name  # Python has a safe extractall since 3.11.4
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    (manifest,) = tmp_path.rglob("manifest.csv")
    with manifest.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    files = [manifest.parent / row["file"] for row in rows]

    ended = run(*files, "--task", "colour", "--json")

    answers = json.loads(ended.out)
    assert ended.code == 0
    assert [answer["file"] for answer in answers] == [*map(str, files)]
    assert len(answers) == 111
    for row, answer in zip(rows, answers, strict=True):
        code = answer.get("error", {}).get("code")
        assert code in {None, "too_large", "unsupported_format", "undecodable"}, answer
        opens = row["result"] == "ok" and row["orientation"] != "exif:OSError"
        if opens and row["format"] in FORMATS:
            assert code is None, row["file"]
        if row["result"] == "DecompressionBombError" or row["kind"] == "crash":
            assert code is not None, row["file"]


@pytest.fixture(scope="module")
def url(work: Path) -> Iterator[str]:
    with served("--device", "cpu", "--engine", "onnxruntime", folder=work) as url:
        yield url


@pytest.mark.slow
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tasks=st.lists(st.sampled_from(["colour", "parity", "colour@1"]), min_size=1, max_size=3),
    files=st.lists(st.sampled_from(["photos", *FILES, "photos/notes.txt"]), min_size=1, max_size=6),
    top_k=st.integers(1, 4),
    activation=st.sampled_from(["softmax", "sigmoid", "none"]),
    threshold=st.none() | st.floats(-1, 1),
)
def test_here_and_by_a_server_the_answers_are_the_same(
    run: Command,
    url: str,
    tasks: list[str],
    files: list[str],
    top_k: int,
    activation: str,
    threshold: float | None,
) -> None:
    words: list[object] = [*files, "--top-k", top_k, "--activation", activation, "--json"]
    words += [word for task in tasks for word in ("--task", task)]
    words += [] if threshold is None else [f"--threshold={threshold}"]

    here, there = run(*words), run(*words, "--url", url)

    assert here.code == there.code
    rows = json.loads(there.out)
    for row in rows:
        if "predictions" in row:
            row["predictions"] = close(row["predictions"])
    assert json.loads(here.out) == rows
