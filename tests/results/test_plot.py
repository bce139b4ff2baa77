from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lspt_serve.errors import OutputError
from lspt_serve.results import Comparison, Figure, Row, draw_comparison

BLUE, GREY = (0x25, 0x63, 0xAE), (0x6B, 0x77, 0x85)


def comparison(*rows: dict[str, float], tasks: tuple[str, ...] = ("a",)) -> Comparison:
    """Entries with their tests by task; the mean over tasks is 0.5 for all."""
    made = [
        Row(
            name=f"entry {number}",
            method="lspt",
            tasks={task: Figure(test, 0.01, 3) for task, test in tests.items()},
            mean=Figure(0.5, None, 1) if tests.keys() == set(tasks) else None,
            task_bytes=None,
            train_s=None,
        )
        for number, tests in enumerate(rows)
    ]
    return Comparison("caption", list(tasks), made, [])


def draw(tmp_path: Path, what: Comparison) -> Any:
    draw_comparison(tmp_path / "plot.png", what)
    return np.asarray(Image.open(tmp_path / "plot.png")).astype(int)


def places(picture: Any, colour: tuple[int, ...]) -> Any:
    """Rows and columns of the pixels of a colour, in [0, 1] of the picture."""
    found = np.argwhere(np.abs(picture - colour).max(axis=-1) < 8)
    return found / picture.shape[:2]


def test_the_best_is_blue_and_stands_in_its_row_and_to_the_right(tmp_path: Path) -> None:
    heights = []
    for best in range(4):
        tests = [0.9 if number == best else 0.1 for number in range(4)]
        picture = draw(tmp_path, comparison(*({"a": test} for test in tests)))

        rows, columns = places(picture, BLUE).T
        assert rows.max() - rows.min() < 0.15  # one marker of four
        heights.append(rows.mean())
        assert columns.min() > 0.8
        assert np.median(places(picture, GREY)[:, 1]) < 0.6  # the three others
    steps = np.diff(heights)
    assert steps == pytest.approx(steps.mean(), abs=0.02)
    assert steps.mean() > 0.1


def test_equal_as_printed_is_equally_good(tmp_path: Path) -> None:
    picture = draw(tmp_path, comparison({"a": 0.5}, {"a": 0.50001}, {"a": 0.1}))

    rows = places(picture, BLUE)[:, 0]
    assert rows.max() - rows.min() > 0.15


def test_several_tasks_have_a_panel_each_and_one_for_the_mean(tmp_path: Path) -> None:
    one = draw(tmp_path, comparison({"a": 0.5}, {"a": 0.6}))
    two = draw(tmp_path, comparison({"a": 0.5, "b": 0.2}, {"a": 0.6}, tasks=("a", "b")))

    assert one.shape[0] == two.shape[0]
    assert two.shape[1] - one.shape[1] == pytest.approx(2 * 1.9 * 144, abs=2)  # of 144 dpi


def test_a_longer_table_is_a_higher_picture(tmp_path: Path) -> None:
    few, many = (draw(tmp_path, comparison(*[{"a": 0.5}] * count)) for count in (2, 22))

    assert many.shape[0] - few.shape[0] == pytest.approx(20 * 0.28 * 144, abs=2)


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(OutputError, match=r"plot\.png cannot be written: "):
        draw_comparison(tmp_path / "file" / "plot.png", comparison({"a": 0.5}))
