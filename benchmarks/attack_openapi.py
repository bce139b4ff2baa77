"""Schemathesis, which makes requests of the OpenAPI document, right ones and wrong ones."""

import re
import subprocess
from pathlib import Path
from urllib.request import urlopen
from xml.etree import ElementTree

from proof_packages import find_python
from proof_server import Server

__all__ = ["count_answers", "run_schemathesis"]

SPARE_S = 120.0
# Each answer is no error of the server's, and as the document says. Not that it is JSON: what is no
# HTTP, and a path with the end of a line in it, are refused in plain text before the app.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


def run_schemathesis(
    server: Server, folder: Path, *, token: str, examples: int, seconds: float
) -> tuple[int | None, str]:
    """How many of its cases failed, and a note; None where it cannot be had."""
    python, found = find_python("schemathesis", with_ours=False)
    if python is None:
        return None, found
    report = folder / "schemathesis.xml"
    command = [str(python.with_name("schemathesis")), "run", f"{server.url}/docs.json"]
    command += ["--url", server.url, "--checks", ",".join(CHECKS), "--continue-on-failure"]
    command += ["--max-examples", str(examples), "--max-time", str(int(seconds)), "--seed", "1"]
    command += ["--header", f"Authorization: Bearer {token}", "--request-timeout", "60"]
    command += ["--report", "junit", "--report-junit-path", str(report)]
    ended = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + SPARE_S,
        check=False,
    )
    if not report.exists():
        return None, f"schemathesis {found} ended with {ended.returncode}: {ended.stdout[-400:]}"
    suites = ElementTree.parse(report).getroot()
    failures = len(suites.findall(".//failure"))
    errors = [
        (error.text or error.get("message") or "")[:200] for error in suites.findall(".//error")
    ]
    note = f"schemathesis {found}, {examples} examples of an operation"
    return failures, note + (f"; {len(errors)} errors of its own: {errors[0]}" if errors else "")


def count_answers(server: Server) -> dict[int, int]:
    """Status -> answers so far, by the server's own metrics."""
    with urlopen(f"{server.url}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    counts: dict[int, int] = {}
    for status, count in re.findall(
        r'^lspt_http_seconds_count\{.*status="(\d+)"\} (\S+)', text, re.M
    ):
        counts[int(status)] = counts.get(int(status), 0) + int(float(count))
    return counts
