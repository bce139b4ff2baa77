"""Write scikit-learn's digits as class folders: three tasks over the same real scans.

python examples/digits/prepare.py --out build/digits

OUT/digit/{train,val,test}/{0..9}/*.png     which digit
OUT/parity/{train,val,test}/{even,odd}/*.png
OUT/loop/{train,val,test}/{loop,open}/*.png  has a closed loop: 0, 6, 8, 9
OUT/samples/*.png                            a few test scans, to try the server with
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from split import Digits, load_digits_split

TASKS: dict[str, Callable[[int], str]] = {
    "digit": str,
    "parity": lambda digit: "odd" if digit % 2 else "even",
    "loop": lambda digit: "loop" if digit in {0, 6, 8, 9} else "open",
}


def write_task(folder: Path, part: Digits, label_of: Callable[[int], str]) -> None:
    for index, (scan, digit) in enumerate(zip(part.images, part.labels, strict=True)):
        path = folder / label_of(int(digit)) / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scan).save(path)


def write_samples(folder: Path, test: Digits) -> None:
    """The first test scan of each digit, named after it."""
    folder.mkdir(parents=True, exist_ok=True)
    for digit in range(10):
        first = int((test.labels == digit).argmax())
        Image.fromarray(test.images[first]).save(folder / f"{digit}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write scikit-learn's digits as class folders.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    out: Path = parser.parse_args().out
    splits = load_digits_split()
    for task, label_of in TASKS.items():
        for name, part in splits._asdict().items():
            write_task(out / task / name, part, label_of)
    write_samples(out / "samples", splits.test)


if __name__ == "__main__":
    main()
