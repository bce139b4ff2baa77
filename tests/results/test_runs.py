import json
from pathlib import Path

import pytest

from lspt_serve.errors import SweepError
from lspt_serve.results import Run, check_runs_output, load_runs, save_runs

RUN = Run(
    task="a", name="lspt D/4", method="lspt", options={"coder_hidden": 48}, train={"lr": 0.01},
    image_size=32, protocol="vtab", trials=6, seed=3, val=0.75, test=0.5, task_bytes=12,
    train_s=1.5, backbone="0123456789ab", lspt_serve="0.1.0",
)  # fmt: skip


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_runs(tmp_path / "runs.json", [RUN])

    assert load_runs(tmp_path / "runs.json") == [RUN]
    assert json.loads((tmp_path / "runs.json").read_text())[0]["name"] == "lspt D/4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no list of runs as lspt sweep writes it: file"),
        ('[{"task": "a"}]', "no list of runs as lspt sweep writes it: 0.name: Field required"),
        ("[", "no list of runs"),
    ],
)
def test_another_file_is_no_list_of_runs_and_is_not_replaced(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "thesis.json"
    path.write_text(text)

    for check in (load_runs, check_runs_output):
        with pytest.raises(SweepError, match=message):
            check(path)


def test_runs_may_be_replaced_by_runs(tmp_path: Path) -> None:
    check_runs_output(tmp_path / "runs.json")
    save_runs(tmp_path / "runs.json", [RUN])
    check_runs_output(tmp_path / "runs.json")
