"""Requests per second and latency beside two straightforward servers of the same model.

    python benchmarks/prove_peers.py

A ViT-Ti and a ViT-B with a linear head, 224 px JPEG files, one server process each: `lspt serve`,
in fp32 and, where the CPU is faster in them, in bf16 and in int8; a BentoML service with a timm
model in torch and adaptive batches; LitServe with the same model, both in fp32 as torch has it. All
run at once and are asked in turn, by 1, 8 and 32 callers that each wait for their answer; those
that are not asked are idle. Before, their answers are held to each other. int8 is calibrated on the
images that are asked for: this is of speed, not of accuracy. The peers' code is in
benchmarks/peers. LitServe comes from PyPI, into an environment of its own.
"""

import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from common import Target, clean_up_when_stopped, paired_ratio, percentile, progress
from peers_arms import BENTO, LIT, OURS, TASK, Arm, Material, create_material, run_arms
from proof_page import finish, parse_proof
from proof_tasks import create_images
from proof_traffic import Run, Start, evenly, generator, poisson

VITS = ["vit_tiny_patch16_224", "vit_base_patch16_224"]
CLIENTS = [1, 8, 32]
NUM_IMAGES, SIDE = 8, 224
ARRIVALS = {"half load": poisson, "half load, evenly": evenly}
AT_LEAST, MOST_MS, MOST_SPREAD = 2.0, 5.0, 2.0
Rounds = dict[str, list[Run]]  # arm -> a run for each round
Targets = list[tuple[Target, str]]


def measure(vit: str, start: Start, args: Namespace) -> tuple[Targets, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        progress(f"{vit}: exporting")
        material = create_material(vit, Path(scratch), create_images(NUM_IMAGES, SIDE))
        with run_arms(material) as (arms, found):
            errors = {arm.name: arm.check(start, material) for arm in arms}
            progress(f"{vit}: {', '.join(errors)} answer alike; LitServe: {found}")
            rounds = {
                clients: take_rounds(arms, material, clients, start, args) for clients in CLIENTS
            }
            pairs = take_pairs(arms[0], material, start, args)
            halves = run_halves(arms[0], material, rounds[CLIENTS[-1]][OURS], start, args)
        material.engine.close()
    table = {
        str(clients): {name: summarise(runs) for name, runs in own.items()}
        for clients, own in rounds.items()
    }
    raw = {
        "vit": vit,
        "errors": errors,
        "bare_ms": [bare for bare, _ in pairs],
        "alone_ms": [alone for _, alone in pairs],
        "clients": table,
        "half": {name: summarise([run]) for name, run in halves.items()},
    }
    return to_targets(vit, rounds, pairs, halves, found), raw


def take_rounds(
    arms: Sequence[Arm], material: Material, clients: int, start: Start, args: Namespace
) -> Rounds:
    """Each round begins with another arm; one before them warms up."""
    rounds: Rounds = {arm.name: [] for arm in arms}
    for number in range(1 + args.rounds):
        first = number % len(arms)
        for arm in [*arms[first:], *arms[:first]]:
            run = arm.run(start, material.images, seconds=args.seconds, clients=clients)
            check_answered(arm.name, run)
            if number:
                rounds[arm.name].append(run)
                progress(f"{clients} client(s), {arm.name}: {run.whole_per_s:.1f}/s")
    return rounds


def check_answered(name: str, run: Run) -> None:
    if bad := [each for each in run.seen if each.status != 200]:
        raise SystemExit(f"{name}: {len(bad)} of {len(run.seen)} failed: {bad[0].body[:300]!r}")


def take_pairs(
    arm: Arm, material: Material, start: Start, args: Namespace
) -> list[tuple[float, float]]:
    """Medians in milliseconds of the engine alone and of one caller at the server, in turn."""
    pairs = []
    for _ in range(2 * args.rounds):
        bare = percentile(run_bare(material, args.seconds), 0.5)
        run = arm.run(start, material.images, seconds=args.seconds, clients=1)
        check_answered(arm.name, run)
        pairs.append((bare, percentile(latencies_ms([run]), 0.5)))
    return pairs


def run_bare(material: Material, seconds: float) -> list[float]:
    """Milliseconds of the engine alone, a decoded image at a time."""
    pixels, taken = material.pixels(0)[None], []
    end = time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        material.engine.features(pixels, [material.bundle.method_tensors])
        taken.append(1000 * (time.perf_counter() - now))
    return taken


def run_halves(
    arm: Arm, material: Material, full: Sequence[Run], start: Start, args: Namespace
) -> dict[str, Run]:
    """At half of what it can do: requests at random times, and all as far apart."""
    rate, seconds = median(run.whole_per_s for run in full) / 2, args.seconds * args.rounds
    runs = {}
    for name, arrive in ARRIVALS.items():
        shots = arrive(rate, seconds, lambda rng, at_s: (rng.randrange(NUM_IMAGES), TASK), 0)
        runs[name] = arm.run(start, material.images, seconds=seconds, shots=shots)
        check_answered(arm.name, runs[name])
    return runs


def latencies_ms(runs: Sequence[Run]) -> list[float]:
    return [1000 * each for run in runs for each in run.latencies_s()]


def summarise(runs: Sequence[Run]) -> dict[str, Any]:
    latencies = latencies_ms(runs)
    return {
        "per_s": [run.whole_per_s for run in runs],
        "p50_ms": percentile(latencies, 0.5),
        "p99_ms": percentile(latencies, 0.99),
        "cpu_share": max(run.cpu_share for run in runs),
    }


def to_targets(
    vit: str,
    rounds: dict[int, Rounds],
    pairs: Sequence[tuple[float, float]],
    halves: dict[str, Run],
    found: str,
) -> Targets:
    targets: Targets = []
    most = rounds[CLIENTS[-1]]
    peers = (BENTO, LIT)
    for ours, peer in product([name for name in most if name not in peers], peers):
        note = describe(most, ours, peer) if peer in most else found
        name = f"{vit}: {ours} over {peer}, {CLIENTS[-1]} clients"
        ratio = to_ratio(most, ours, peer)
        targets.append((Target(name, "at least", AT_LEAST, ratio, note), "x"))
    more = [alone - bare for bare, alone in pairs]
    bare, alone = (median(each) for each in zip(*pairs, strict=True))
    note = f"p50 of {alone:.1f} ms, of the engine alone {bare:.1f} ms; "
    note += f"median of {len(more)} turns, {min(more):.1f} to {max(more):.1f} ms"
    over = Target(f"{vit}: p50 over the engine, 1 client", "at most", MOST_MS, median(more), note)
    tails = [to_tail(f"{vit}: p99 over p50, {name}", run) for name, run in halves.items()]
    return [*targets, (over, "ms"), *tails]


def to_tail(name: str, run: Run) -> tuple[Target, str]:
    middle, slow = (percentile(latencies_ms([run]), share) for share in (0.5, 0.99))
    note = f"p50 {middle:.1f}, p99 {slow:.1f} ms at {run.per_s:.1f}/s"
    return Target(name, "at most", MOST_SPREAD, slow / middle, note), "x"


def to_ratio(rounds: Rounds, ours: str, peer: str) -> float | None:
    if peer not in rounds:
        return None
    own, theirs = ([run.whole_per_s for run in rounds[name]] for name in (ours, peer))
    return paired_ratio(own, theirs)


def describe(rounds: Rounds, *arms: str) -> str:
    parts = []
    for name in arms:
        own = summarise(rounds[name])
        rate = median(own["per_s"])
        parts.append(f"{name} {rate:.1f}/s, p50 {own['p50_ms']:.0f}, p99 {own['p99_ms']:.0f} ms")
    return " / ".join(parts)


def main(words: Sequence[str] | None = None) -> None:
    args = parse_proof(
        __doc__,
        words,
        vit={"action": "append", "help": "timm models"},
        seconds={"type": float, "help": "of a turn; 5"},
        rounds={"type": int, "help": "3"},
    )
    args.vit = args.vit or (VITS[:1] if args.quick else VITS)
    args.seconds = args.seconds or (1.0 if args.quick else 5.0)
    args.rounds = args.rounds or (1 if args.quick else 3)
    clean_up_when_stopped()
    targets: Targets = []
    details = []
    with generator() as start:
        for vit in args.vit:
            own, raw = measure(vit, start, args)
            targets += own
            details.append(raw)
    finish("prove_peers", targets, args, details=details)


if __name__ == "__main__":
    main()
