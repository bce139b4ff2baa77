"""What callers and bundles from elsewhere may try: no crash, no 5xx, no file outside of the store.

    python benchmarks/prove_attack.py

A real `lspt serve` of a small model gets names that lead out of its folder, images of too many
pixels, nested JSON and lies at all its routes, what schemathesis makes of its OpenAPI document, and
a folder of tampered bundles. A hook in its processes writes down every file that Python opens, by
where it lies once links are followed (before 2026-11-28 it was by its name). The loading of bundles
and the decoding of images are fuzzed by themselves, ten minutes each.
"""

import asyncio
import json
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from attack_fuzzers import fuzz
from attack_inputs import bundle_seeds, image_seeds
from attack_openapi import count_answers, run_schemathesis
from attack_opens import HOOK, find_strays, read_opened
from attack_requests import Answered, Attack, all_attacks, explain, send_all
from attack_tampered import tamper_all
from common import HERE, Target, clean_up_when_stopped, progress
from proof_client import to_request
from proof_page import finish, parse_proof
from proof_scene import VIT, Scene, create_scene, with_hook
from proof_server import Server, serve

from lspt_serve.bundle import MANIFEST

TOKEN = "proof"
SECRET = "out-of-the-store"
PHASES = ("requests", "bundles", "images")
Targets = list[tuple[Target, str]]


def attack_server(scene: Scene, args: Namespace) -> tuple[Targets, Any]:
    """All that goes over the network, and tampered bundles in its folder."""
    log, spool = scene.folder / "opened.txt", scene.folder / "spool"
    spool.mkdir()
    hide_secret(scene)
    hook = with_hook(scene.folder / "open-hook", HOOK.format(path=str(log)))
    environment = {**hook, "LSPT_ADMIN_TOKEN": TOKEN, "TMPDIR": spool}
    with serve(scene.folder, environment=environment) as server:
        ask_once(scene, server)
        first, workers = len(read_opened(log)), {each.pid for each in server.workers()}
        metrics = Path(server.workers()[0].environ()["PROMETHEUS_MULTIPROC_DIR"])
        with urlopen(f"{server.url}/docs.json", timeout=20) as answer:
            document = json.load(answer)
        progress(f"attacking {len(document['paths'])} routes")
        attacks = all_attacks(document, scene.images[0], TOKEN)
        if args.quick:
            attacks = attacks[:: max(1, len(attacks) // 150)]
        secrets = [SECRET.encode(), b"root:x:"]
        tampered = tamper_all(scene, server)  # before an attack has a task unloaded
        own = asyncio.run(send_all(server.host, server.port, attacks, secrets=secrets))
        examples, seconds = (3, 10.0) if args.quick else (100, 300.0)
        failures, note = run_schemathesis(
            server, scene.folder, token=TOKEN, examples=examples, seconds=seconds
        )
        statuses = count_answers(server)
        opened = read_opened(log)[first:]
        died = len(workers - {each.pid for each in server.workers()})
    allowed = [
        scene.folder / "bundles",
        scene.folder / "bentoml",
        metrics,
        spool,
        HERE.parent / "lspt_serve",
    ]
    strays = find_strays(opened, allowed)
    for line in [*own.failed, *own.leaked, *strays][:20]:
        progress(line)
    raw = {"statuses": own.statuses, "failed": own.failed, "strays": strays, "all": statuses}
    targets = to_targets(own, statuses, died, strays, len(opened))
    name = "schemathesis: server errors, and answers that are not as documented"
    schemathesis = Target(name, "at most", 0, failures, note)
    return [*targets, tampered, (schemathesis, "")], raw


def hide_secret(scene: Scene) -> None:
    """A bundle that is whole, beside the folder of bundles."""
    secret = scene.folder / "secret"
    shutil.copytree(scene.folder / "bundles" / scene.names[0], secret)
    manifest = json.loads((secret / MANIFEST).read_text())
    manifest |= {"name": "secret", "license": SECRET}
    (secret / MANIFEST).write_text(json.dumps(manifest))


def ask_once(scene: Scene, server: Server) -> None:
    """What is opened for the first right request is no work of an attack."""
    attack = to_request(server.host, f"/classify?task={scene.names[0]}", scene.images[0])
    answered = asyncio.run(send_all(server.host, server.port, [Attack("right", attack)]))
    if answered.statuses[200] != 1:
        raise SystemExit(f"a right request was answered with {dict(answered.statuses)}")


def to_targets(
    own: Answered, statuses: dict[int, int], died: int, strays: Sequence[str], opened: int
) -> Targets:
    wrong = sum(count for status, count in statuses.items() if status >= 500)
    total = sum(statuses.values())
    note = f"of {own.statuses.total()} by status, 0 for none: {explain(own)}"
    return [
        (Target("hostile requests: 5xx", "at most", 0, len(own.failed), note), ""),
        (Target("all requests: 5xx", "at most", 0, wrong, f"of {total}, by its metrics"), ""),
        (Target("workers that died", "at most", 0, died), ""),
        (Target("files read outside of the store", "at most", 0, len(strays), f"of {opened}"), ""),
        (Target("answers that tell a secret", "at most", 0, len(own.leaked)), ""),
    ]


def run_fuzzer(
    kind: str, seeds: Sequence[bytes], folder: Path, minutes: float
) -> tuple[Targets, Any]:
    progress(f"fuzzing {kind} for {minutes:g} min")
    report = fuzz(kind, seeds, minutes * 60, folder)
    for line in report["crashes"]:
        progress(line)
    name = f"fuzzed {kind}: crashes and errors that are none of ours"
    note = f"{report['runs']:,} inputs in {minutes:g} min, {report['engine']}"
    return [(Target(name, "at most", 0, len(report["crashes"]), note), "")], report


def main(words: Sequence[str] | None = None) -> None:
    args = parse_proof(
        __doc__,
        words,
        vit={"default": VIT, "help": "a timm model, or a file of weights"},
        minutes={"type": float, "help": "of each fuzzer; 10"},
        phase={"action": "append", "choices": PHASES, "help": "all, unless given"},
    )
    minutes = args.minutes or (0.05 if args.quick else 10.0)
    clean_up_when_stopped()
    targets: Targets = []
    details = {}
    with tempfile.TemporaryDirectory() as scratch:
        scene = create_scene(Path(scratch), vit=args.vit)
        seeds = {"bundles": bundle_seeds(scene.folder / "bundles"), "images": image_seeds()}
        for phase in args.phase or PHASES:
            if phase == "requests":
                own, details[phase] = attack_server(scene, args)
            else:
                own, details[phase] = run_fuzzer(phase, seeds[phase], scene.folder, minutes)
            targets += own
    finish("prove_attack", targets, args, details=details)


if __name__ == "__main__":
    main()
