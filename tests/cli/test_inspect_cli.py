import sys
from pathlib import Path

import pytest
from toys import random_bundle

from lspt_serve.bundle import MANIFEST, save_bundle
from lspt_serve.cli import main
from lspt_serve.models import Backbone

TITLE = "\x1b]0;mine\x07"  # a terminal that prints this changes its title


@pytest.fixture
def folder(tiny_backbone: Backbone, tmp_path: Path) -> Path:
    bundle = random_bundle(tiny_backbone, name="colour", labels=[TITLE, "red"])
    save_bundle(bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def inspect(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr(sys, "argv", ["lspt", "inspect", str(folder)])
    with pytest.raises(SystemExit):
        main()
    return "".join(capsys.readouterr())


def test_a_strangers_bundle_does_nothing_to_the_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = inspect(folder, monkeypatch, capsys)

    assert "\x1b" not in said
    assert "\x07" not in said
    assert r"\x1b]0;mine\x07, red" in said


def test_nor_does_the_reason_why_it_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = (folder / MANIFEST).read_text().replace('"red"', r'"\u001b]0;mine\u0007"')
    (folder / MANIFEST).write_text(manifest)

    said = inspect(folder, monkeypatch, capsys)

    assert "\x1b" not in said
    assert r"got twice: \x1b]0;mine\x07" in said
