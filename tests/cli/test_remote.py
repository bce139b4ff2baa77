"""What lspt load, unload and alias say before or without a server; the rest is end to end."""

import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from lspt_serve.cli import main


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """run(words): exit code and stderr of a command."""
    monkeypatch.setenv("LSPT_ADMIN_TOKEN", "token")

    def command(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lspt", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return command


class OtherServer(BaseHTTPRequestHandler):
    """Any server that is not ours."""

    def do_POST(self) -> None:
        self.send_error(404)

    def do_PUT(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Sign in</html>")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def other_server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), OtherServer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["alias", "flowers", "3"], "'flowers' is not of the form NAME:ALIAS"),
        (["alias", "flowers:", "3"], "'flowers:' is not of the form NAME:ALIAS"),
        (["alias", "flowers:stable"], "give a version or --delete, one of them"),
        (["alias", "flowers:stable", "3", "--delete"], "give a version or --delete, one of them"),
        (["load", "flowers", "--url", "127.0.0.1:9"], "wanted http://HOST:PORT"),
        (["load", "flowers", "--url", "ftp://127.0.0.1"], "wanted http://HOST:PORT"),
        (["unload", "flowers", "--url", "http://127.0.0.1:9"], "no server answers at http"),
        (["load", "a/b"], "'a/b' cannot name a task"),
        (["unload", "\udcff"], "cannot name a task"),
        (["alias", "Flowers:stable", "3"], "'Flowers' cannot name a task"),
        (["alias", "a:\udcff", "3", "--url", "http://127.0.0.1:9"], "no server answers at http"),
    ],
)
def test_mistake_is_one_line(
    run: Callable[..., tuple[int, str]], words: list[str], wanted: str
) -> None:
    code, printed = run(*words)

    assert code == 2
    assert wanted in printed
    assert printed.count("\n") == 1


def test_missing_token_is_told(
    run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LSPT_ADMIN_TOKEN")

    assert "LSPT_ADMIN_TOKEN is not set" in run("load", "flowers")[1]


@pytest.mark.parametrize("token", ["s3cret\n", "s3cret ", "s3crét"])
def test_a_token_that_no_header_may_hold_is_not_told(
    run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("LSPT_ADMIN_TOKEN", token)

    code, printed = run("load", "flowers")

    assert (code, printed.count("\n")) == (2, 1)
    assert "LSPT_ADMIN_TOKEN holds what no header may" in printed
    assert "s3cr" not in printed


@pytest.mark.parametrize(
    ("words", "status"), [(["load", "flowers"], 404), (["alias", "flowers:stable", "3"], 200)]
)
def test_server_that_is_not_ours_is_told(
    run: Callable[..., tuple[int, str]], other_server: str, words: list[str], status: int
) -> None:
    code, printed = run(*words, "--url", other_server)

    assert (code, printed.count("\n")) == (2, 1)
    assert f"answered {status}, and not as lspt serve does" in printed
