import re
from difflib import get_close_matches

import pytest

from lspt_serve import errors
from lspt_serve.errors import LSPTError, name_some, nearest


def drawn() -> list[tuple[str, str]]:
    """(class, parent) of the tree in the module's docstring, from the depth of each line."""
    lines = re.findall(r"^([│ ]*)[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE)
    last = {-1: "LSPTError"}
    pairs = []
    for indent, name in lines:
        depth = len(indent) // 4
        last[depth] = name
        pairs.append((name, last[depth - 1]))
    return pairs


@pytest.mark.parametrize(("name", "parent"), drawn())
def test_an_error_descends_from_where_the_docstring_draws_it(name: str, parent: str) -> None:
    assert getattr(errors, name).__bases__ == (getattr(errors, parent),)


def test_every_public_error_is_drawn_once() -> None:
    public = [name for name in errors.__all__ if name.endswith("Error")]
    assert sorted(["LSPTError", *(name for name, _ in drawn())]) == sorted(public)
    assert issubclass(LSPTError, ValueError)


def test_nearest_names_the_likeliest_first() -> None:
    assert nearest("lstp", ["gated", "lspt", "linear"]) == "; nearest: lspt"
    assert nearest("vpt-shalow", ["vpt-deep", "vpt-shallow"]).startswith("; nearest: vpt-shallow")


def test_nearest_is_silent_when_nothing_is_close() -> None:
    assert nearest("zzz", ["gated", "lspt"]) == ""
    assert nearest("lspt", []) == ""


def test_nearest_keeps_to_its_limit() -> None:
    known = [f"task{number}" for number in range(9)]
    assert nearest("task", known, limit=2).count("task") == 2


def test_nothing_is_near_to_what_is_longer_than_any_name() -> None:
    assert nearest("a" * 64, ["a" * 63]) != ""
    assert nearest("a" * 65, ["a" * 64]) == ""


@pytest.mark.parametrize("wrong", ["customer-1234-surface-defect", "custmer-1234-surface-defects"])
def test_of_many_names_few_are_compared_and_the_nearest_is_found(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [f"customer-{number:04}-surface-defects" for number in range(5000)]
    compared: list[str] = []

    def match(name: str, names: list[str], *, n: int, cutoff: float) -> list[str]:
        compared.extend(names)
        return get_close_matches(name, names, n, cutoff)

    monkeypatch.setattr(errors, "get_close_matches", match)

    assert nearest(wrong, known).startswith("; nearest: customer-1234-surface-defects")
    assert len(compared) == 50


@pytest.mark.parametrize(
    ("names", "text"),
    [([], ""), (["a"], "a"), ("abcde", "a, b, c, d, e"), ("abcdefg", "a, b, c, d, e and 2 more")],
)
def test_name_some_tells_how_many_were_left_out(names: list[str], text: str) -> None:
    assert name_some(names) == text
