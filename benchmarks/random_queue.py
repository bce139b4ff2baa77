"""What chance alone makes of latencies: one server, always as long, and requests at random times.

python benchmarks/random_queue.py --per-s 55.7 --ms 12
"""

import argparse
import random
from collections.abc import Sequence

from common import percentile

REQUESTS = 200_000


def simulate(per_s: float, seconds: float) -> list[float]:
    """Seconds from request to answer in a queue M/D/1 that begins empty."""
    rng, now, free, taken = random.Random(0), 0.0, 0.0, []
    for _ in range(REQUESTS):
        now += rng.expovariate(per_s)
        free = max(now, free) + seconds
        taken.append(free - now)
    return taken


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--per-s", type=float, required=True, help="requests")
    parser.add_argument("--ms", type=float, required=True, help="that a request takes alone")
    args = parser.parse_args(words)
    taken = simulate(args.per_s, args.ms / 1000)
    half, most = (1000 * percentile(taken, share) for share in (0.5, 0.99))
    print(f"p50 {half:.0f} ms, p99 {most:.0f} ms, {most / half:.1f} x")


if __name__ == "__main__":
    main()
