"""What the documents tell people to type is what the program takes."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from lspt_serve.api.failures import CODES, FAILURES
from lspt_serve.bundle import Bundle, save_bundle
from lspt_serve.cli import app

ROOT = Path(__file__).resolve().parents[1]
SECURITY = ROOT / "SECURITY.md"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    SECURITY,
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PROOFS = re.findall(r"`(tests/\S+\.py)::(\w+)`", SECURITY.read_text("utf-8"))


def commands(text: str) -> list[list[str]]:
    """The words of every indented or help line that runs lspt; \\ joins lines."""
    joined = text.replace("\\\n", " ")
    lspt = r"^ +(?:(?:\.venv/bin/)?lspt|torchrun .*-m lspt_serve) (.+)$"
    return [line.split() for line in re.findall(lspt, joined, re.M)]


def scripts() -> dict[str, set[str]]:
    """The options that documents give to each python script."""
    found: dict[str, set[str]] = {}
    for path in DOCUMENTS:
        joined = path.read_text("utf-8").replace("\\\n", " ")
        for script, rest in re.findall(r"^ +(?:\.venv/bin/)?python (\S+\.py)(.*)$", joined, re.M):
            options = re.findall(r"--[a-z-]+", rest)
            found[script] = found.get(script, set()) | set(options)
    return found


def all_commands() -> list[list[str]]:
    return [words for path in DOCUMENTS for words in commands(path.read_text("utf-8"))]


def test_there_are_commands_to_look_at() -> None:
    assert {words[0] for words in all_commands()} >= {"train", "inspect", "export", "serve"}


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_a_documented_command_has_only_options_that_exist(words: list[str]) -> None:
    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words[1:] if word.startswith("--")} <= known


@pytest.mark.parametrize(("script", "options"), scripts().items(), ids=[*scripts()])
def test_a_documented_script_has_only_options_that_exist(script: str, options: set[str]) -> None:
    helped = subprocess.run(
        [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, timeout=60
    )

    assert helped.returncode == 0, helped.stderr
    assert options <= set(re.findall(r"--[a-z-]+", helped.stdout))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_link_into_the_repository_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_link_to_a_heading_leads_to_one(path: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", path.read_text("utf-8")):
        there = path.parent / target if target else path
        if there.suffix == ".md":
            assert anchor in anchors(there.read_text("utf-8")), f"{target}#{anchor}"


@pytest.mark.parametrize(("path", "name"), PROOFS)
def test_a_test_that_proves_a_promise_exists(path: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text("utf-8"), re.M)


def test_every_promise_names_a_test() -> None:
    promises = SECURITY.read_text("utf-8").split("## What is promised")[1].split("\n## ")[0]
    rows = [line for line in promises.splitlines() if line.startswith("|")][2:]

    assert len(rows) > 10
    assert [row for row in rows if "`tests/" not in row] == []


@pytest.mark.parametrize("target", re.findall(r"make (\w+)", (ROOT / "README.md").read_text()))
def test_a_documented_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_the_table_of_errors_has_every_code() -> None:
    text = (ROOT / "docs" / "serving.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", text.split("### Errors")[1], re.M)
    codes = [(code, status) for code, status, _ in FAILURES.values()]
    codes += [(code, status) for status, code in CODES.items()]

    assert len(rows) == len(set(rows))
    assert {(code, int(status)) for code, status in rows} == {*codes, ("internal", 500)}


def test_the_code_in_the_bundle_format_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_bundle: Callable[..., Bundle]
) -> None:
    save_bundle(make_bundle(), tmp_path / "bundles" / "digit")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "bundle-format.md").read_text("utf-8")
    code = text[text.index("    from pathlib import Path") :].replace("\n    ", "\n").strip()
    exec(compile(code, "bundle-format.md", "exec"), {})
