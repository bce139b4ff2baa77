"""The most images per second that a CPU has the arithmetic for: no server of it can make more.

python benchmarks/ceiling.py --vit vit_base_patch16_224
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vits import count_flops, create_backbone, measure_ceiling

SIDE, PRECISION = 4096, "fp32"  # of the matrices


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vit", action="append", required=True, help="a timm name or a file")
    parser.add_argument("--side", type=int, default=SIDE, help="of the matrices")
    args = parser.parse_args(words)
    ceiling = measure_ceiling(PRECISION, "cpu", args.side)
    print(f"{ceiling / 1e9:.0f} GFLOP/s in large products in {PRECISION}")
    for vit in args.vit:
        with tempfile.TemporaryDirectory() as scratch:
            flops = count_flops(create_backbone(vit, Path(scratch)), None)
        print(f"{vit}: {flops / 1e9:.1f} GFLOP an image, at most {ceiling / flops:.1f} images/s")


if __name__ == "__main__":
    main()
