import sys

import pytest
from toys_cli import Command, Ended

from lspt_serve.cli import main


@pytest.fixture
def lspt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line's own front door, in process."""

    def lspt(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lspt", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Ended(ended.value.code or 0, printed.out, printed.err)

    return lspt
