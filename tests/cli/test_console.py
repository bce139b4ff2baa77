import os
import signal

import pytest
import typer

from lspt_serve.cli.console import stoppable


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_is_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(typer.Exit) as ended, stoppable():
        os.kill(os.getpid(), number)

    assert ended.value.exit_code == code
    assert capsys.readouterr().err == "stopped; nothing was written\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_inner_of_two_says_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), stoppable(), stoppable(lambda: "half is in [red]/x"):
        os.kill(os.getpid(), signal.SIGTERM)

    assert capsys.readouterr().err == "stopped; half is in [red]/x\n"
