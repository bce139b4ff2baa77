"""The proofs of attacks on toys: what they send, and what they find out."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attack_fuzz
import pytest
from attack_images import create_bombs, png
from attack_inputs import FEEDS, bundle_seeds, feed_image, image_seeds
from attack_opens import HOOK, find_strays, read_opened
from attack_requests import Attack, all_attacks, build, send_all
from attack_tampered import COUNT, rename, tamper
from toys import export_once, random_bundle
from toys_proofs import run_hooked, toy_server

from lspt_serve.bundle import MANIFEST, Bundle, save_bundle
from lspt_serve.errors import LSPTError
from lspt_serve.models import Backbone
from lspt_serve.runtime import OnnxEngine, PromptStore


def test_a_file_outside_of_the_store_is_seen(tmp_path: Path) -> None:
    log, store = tmp_path / "opened", tmp_path / "store"
    store.mkdir()
    (store / "own").write_text("x")
    for secret in ("store-secret", "linked-secret"):
        (tmp_path / secret).write_text("x")
    (store / "link").symlink_to("../linked-secret")
    code = (
        f"import json, os; os.chdir({str(store)!r}); open('own').close(); "
        "open('../store-secret').close(); open('link').close()"
    )
    run_hooked(tmp_path / "hook", HOOK.format(path=str(log)), code)

    opened = read_opened(log)
    assert str(store / "own") in opened
    strays = [str(tmp_path / "linked-secret"), str(tmp_path / "store-secret")]
    assert find_strays(opened, [store, tmp_path / "hook"]) == strays


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
    bundles = tmp_path / "bundles"
    for number in range(COUNT):
        folder = bundles / f"tampered{number:02}"
        save_bundle(random_bundle(tiny_backbone, name="good"), folder)
        rename(folder / MANIFEST, folder.name)
        assert tamper(folder, number)
    save_bundle(random_bundle(tiny_backbone, name="good"), bundles / "good")
    graph = OnnxEngine(export_once(tiny_backbone, tmp_path_factory), device="cpu").graph
    store = PromptStore(bundles, graph)
    assert [task.name for task in store] == ["good"]
    assert len(store.refused) == COUNT
    assert not any(str(tmp_path) in reason for reason in store.refused.values())
