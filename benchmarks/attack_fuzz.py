"""A fuzzer of our own, for where atheris cannot be had: mutations, and what is refused otherwise.

python benchmarks/attack_fuzz.py bundles CORPUS SECONDS
"""

import json
import random
import re
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from attack_inputs import FEEDS

from lspt_serve.errors import LSPTError, first_line

__all__ = ["mutate", "search"]

MEMORY = 8 * 2**30
MOST_KEPT = 2000
WORDS = (
    *(b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\x00\x00\x00", b"\x00" * 8),
    *(b"-1", b"1e999", b"NaN", b"null", b"{}", b"[]", b'""', b"9" * 30, b"[" * 2000, b"\\ud800"),
)


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to eight small changes; some take a part of another input."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        place, size = rng.randrange(len(out) + 1), rng.choice((1, 2, 4, 16, 200))
        match rng.randrange(6):
            case 0 if out:
                out[min(place, len(out) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                del out[place : place + size]
            case 2:
                out[place:place] = out[place : place + size]
            case 3:
                word = rng.choice(WORDS)
                out[place : place + len(word)] = word
            case 4:
                out[place:place] = rng.choice(WORDS)
            case 5 if other:
                begin = rng.randrange(len(other))
                out[place : place + size] = other[begin : begin + size]
    return bytes(out)


def search(kind: str, corpus: Path, seconds: float, *, seed: int = 0) -> dict[str, Any]:
    """Feed mutations; those that are refused for a new reason are mutated further.

    Returns:
        How many were fed, for how many reasons they were refused, and those that were neither
        taken nor refused, each by its error.
    """
    rng, feed = random.Random(seed), FEEDS[kind]
    pool = [path.read_bytes() for path in sorted(corpus.iterdir())]
    reasons: set[str] = set()
    crashes: dict[str, str] = {}
    count, end = 0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        while time.monotonic() < end:
            data = mutate(rng.choice(pool), rng.choice(pool), rng)
            count += 1
            reason = "taken"
            try:
                feed(data, Path(scratch))
            except LSPTError as error:
                reason = re.sub(r"\d+", "0", first_line(error))[-80:]
            except Exception as error:
                crashes.setdefault(f"{type(error).__name__}: {error}"[:200], data[:4096].hex())
            if reason not in reasons and len(pool) < MOST_KEPT:
                reasons.add(reason)
                pool.append(data)
    return {"engine": "own mutations", "runs": count, "reasons": len(reasons), "crashes": crashes}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    kind, corpus, seconds = sys.argv[1:]
    print(json.dumps(search(kind, Path(corpus), float(seconds))))


if __name__ == "__main__":
    main()
