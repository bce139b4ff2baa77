"""One fuzzer under atheris, in an environment that has it; libFuzzer's options follow.

python benchmarks/attack_atheris.py bundles CORPUS -max_total_time=600
"""

import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lspt_serve", "PIL", "safetensors", "attack_inputs"]):
    from attack_inputs import FEEDS

    from lspt_serve.errors import LSPTError


def main() -> None:
    feed = FEEDS[sys.argv.pop(1)]
    scratch = Path(tempfile.mkdtemp())

    def feed_one(data: bytes) -> None:
        with suppress(LSPTError):
            feed(data, scratch)

    atheris.Setup(sys.argv, feed_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
