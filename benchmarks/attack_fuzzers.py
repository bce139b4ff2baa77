"""Fuzzers of loading and decoding, each in a process of its own, whose end is seen, too.

Atheris follows coverage; where it cannot be had, mutations of our own.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import HERE
from proof_packages import find_python

__all__ = ["fuzz"]

SPARE_S = 120.0  # of atheris: to begin and to end
TAIL = 1500  # characters of what a fuzzer said last


def fuzz(kind: str, seeds: Sequence[bytes], seconds: float, folder: Path) -> dict[str, Any]:
    """By atheris where it can be had, in another process; `crashes` by error."""
    corpus = folder / f"corpus-{kind}"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / f"{number:03}").write_bytes(seed)
    python, found = find_python("atheris")
    own = [sys.executable, str(HERE / "attack_fuzz.py"), kind, str(corpus), str(seconds)]
    if python is None:
        return _run_own(own, seconds) | {"why_not_atheris": found}
    command = [str(python), str(HERE / "attack_atheris.py"), kind, str(corpus)]
    options = [f"-max_total_time={int(seconds)}", "-print_final_stats=1", "-timeout=30"]
    options += ["-rss_limit_mb=4096", f"-artifact_prefix={folder}/{kind}-"]
    ended = _run([*command, *options], seconds)
    runs = re.findall(r"number_of_executed_units:\s*(\d+)", ended.stderr)
    coverage = re.findall(r"\bcov: (\d+)", ended.stderr)
    crashes = {} if ended.returncode == 0 else {ended.stderr[-TAIL:]: ""}
    return {
        "engine": f"atheris {found}",
        "runs": int(runs[-1]) if runs else 0,
        "coverage": int(coverage[-1]) if coverage else 0,
        "crashes": crashes,
    }


def _run_own(command: Sequence[str], seconds: float) -> dict[str, Any]:
    ended = _run(command, seconds)
    if ended.returncode:
        last = f"exit {ended.returncode}: {ended.stderr[-TAIL:]}"
        return {"engine": "own mutations", "runs": 0, "crashes": {last: ""}}
    report: dict[str, Any] = json.loads(ended.stdout)
    return report


def _run(command: Sequence[str], seconds: float) -> "subprocess.CompletedProcess[str]":
    """Our package is the one beside these scripts."""
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        timeout=seconds + SPARE_S,
        check=False,
    )
