"""What a config may say, what it comes to, and the line that a mistake is answered with."""

from pathlib import Path
from typing import Any

import pytest

from lspt_serve.errors import SweepError
from lspt_serve.models import Backbone
from lspt_serve.training.sweep import Plan, check_plans, load_config, make_plans

GOOD = """
trials = 6
seeds = [0, 1, 2]
[train]
epochs = 12
[space]
lr = { low = 1e-3, high = 1e-1, log = true }
weight_decay = [0.0, 0.01]
[[entry]]
method = "vpt-deep"
options = { num_prompts = 8 }
"""


def plans_of(tmp_path: Path, text: str) -> dict[str, Plan]:
    (tmp_path / "sweep.toml").write_text(text)
    return {plan.name: plan for plan in make_plans(load_config(tmp_path / "sweep.toml"))}


def test_an_entry_has_what_is_shared_and_what_is_its_own(tmp_path: Path) -> None:
    plan = plans_of(
        tmp_path,
        GOOD + "train = { epochs = 3, batch_size = 8 }\ninit = 'kmeans'\npool = 'cls'\n"
        "space = { lr = [0.5], options.prompt_dropout = [0.0, 0.1] }",
    )["vpt-deep"]

    assert plan.train == {"epochs": 3, "batch_size": 8}
    assert plan.space == {
        "lr": [0.5],
        "weight_decay": [0.0, 0.01],
        "options.prompt_dropout": [0.0, 0.1],
    }
    assert (plan.method, plan.options, plan.trials) == ("vpt-deep", {"num_prompts": 8}, 6)
    assert (plan.init, plan.pool, plan.like) == ("kmeans", "cls", None)


def test_what_an_entry_sets_is_not_searched(tmp_path: Path) -> None:
    text = GOOD.replace("[[entry]]", "options.num_prompts = [1, 2]\n[[entry]]")

    plan = plans_of(tmp_path, text + "train = { lr = 0.5 }")["vpt-deep"]

    assert (list(plan.space), plan.train) == (["weight_decay"], {"epochs": 12, "lr": 0.5})


def test_what_an_entry_searches_is_not_set(tmp_path: Path) -> None:
    plan = plans_of(tmp_path, GOOD + "space = { epochs = [1, 2] }")["vpt-deep"]

    assert plan.train == {}
    assert plan.space["epochs"] == [1, 2]


def test_nothing_to_search_is_one_trial(tmp_path: Path) -> None:
    plan = plans_of(tmp_path, "trials = 6\n[[entry]]\n")["lspt"]

    assert (plan.method, plan.trials) == ("lspt", 1)


def test_a_grid_has_as_many_trials_as_points(tmp_path: Path) -> None:
    text = 'sampler = "grid"\n[space]\nlr = [1, 2, 3]\nweight_decay = [0, 1]\n[[entry]]\n'
    text += '[[entry]]\nname = "two"\nspace.lr = [1]\n'

    assert [plan.trials for plan in plans_of(tmp_path, text).values()] == [6, 2]


def test_like_copies_an_entry_but_for_what_it_says(tmp_path: Path) -> None:
    more = """train = { batch_size = 8 }
    pool = "cls"
    [[entry]]
    name = "more prompts"
    like = "vpt-deep"
    options = { prompt_dropout = 0.1 }
    train = { epochs = 120 }
    [[entry]]
    method = "gated"
    like = "vpt-deep"
    """
    plans = plans_of(tmp_path, GOOD + more)

    same, other = plans["more prompts"], plans["gated"]
    assert same.options == {"num_prompts": 8, "prompt_dropout": 0.1}
    assert other.options == {}  # those of another method
    assert same.train == {"epochs": 120, "batch_size": 8}
    assert other.train == {"epochs": 12, "batch_size": 8}
    for plan in (same, other):
        assert (plan.pool, plan.space, plan.trials, plan.like) == ("cls", {}, 0, "vpt-deep")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trials = 6", "trails = 6", "unknown key trails; wanted one of: .*nearest: trials"),
        ("trials = 6", "", "trials: sampler tpe needs to be told how many"),
        ("trials = 6", "trials = 0", "trials: Input should be greater than or equal to 1"),
        ("trials = 6", 'sampler = "tpo"\ntrials = 6', "sampler: Input should be 'tpe', 'random'"),
        ("trials = 6", 'sampler = "grid"\ntrials = 6', "trials: sampler grid has as many as"),
        ("trials = 6", 'sampler = "grid"', "space.lr: sampler grid wants a list of values"),
        ("trials = 6", 'protocol = "vtap"\ntrials = 6', "protocol: Input should be 'vtab' or"),
        ("[0, 1, 2]", "[0, 0]", r"seeds must differ, got \[0, 0\]"),
        ("[0, 1, 2]", "[]", "seeds: List should have at least 1 item"),
        ("[0, 1, 2]", "[-1]", "seeds.1: Input should be greater than or equal to 0"),
        ("epochs = 12", "epoch = 12", "unknown key train.epoch; .*nearest: epochs"),
        ("epochs = 12", "seed = 1", "train.seed: it is set by seeds and by protocol vtab"),
        ("epochs = 12", 'keep = "best"', "train.keep: it is set by seeds and by protocol vtab"),
        ("epochs = 12", "early_stop = 3", "train.early_stop: it is set by seeds and by prot"),
        ("epochs = 12", "lr = 0.1", r"lr is in \[train\] and in \[space\]"),
        ("[0.0, 0.01]", "0.01", "space.weight_decay: wanted a list of values, or { low ="),
        ("[0.0, 0.01]", "[]", "space.weight_decay: List should have at least 1 item"),
        ("weight_decay", "wait_decay", "unknown key space.wait_decay; .*nearest: weight_decay"),
        ("low = 1e-3", "lo = 1e-3", "space.lr.low: Field required"),
        ("log = true", "lug = true", "unknown key space.lr.lug; .*nearest: log"),
        ("low = 1e-3", "low = 1", "space.lr: low must be below high, got 1 and 0.1"),
        ("low = 1e-3", "low = 0", "space.lr: low must be above 0 where log is true, got 0"),
        ("options =", "optons =", "unknown key entry.1.optons; .*nearest: options"),
        ("[[entry]]", "[[entry]]\n[[entry]]\n[[entry]]", "entry.2: two entries are called 'lspt'"),
        ("[[entry]]", "[entry]", "entry: Input should be a valid list"),
        ("[[entry]]", '[[entry]]\nlike = "lspt"', "entry.1.like: 'lspt' is no entry above it"),
        ("[[entry]]", '[[entry]]\ninit = "kmean"', "unknown init 'kmean'"),
        ("[[entry]]", "[[entry]]\ntrain.epoch = 1", "unknown key entry.1.train.epoch;"),
        ("[[entry]]", "[[entry]]\nspace.epoch = [1]", "unknown key entry.1.space.epoch;"),
        (
            "[[entry]]",
            "[[entry]]\nspace.epochs = [1]\ntrain.epochs = 1",
            "entry.1: epochs is set and searched",
        ),
        (
            "[[entry]]",
            "[[entry]]\n[[entry]]\nname = 'x'\nlike = 'lspt'\nspace.lr = [1]\n[[entry]]",
            "entry.2.space: an entry with like has no search",
        ),
        ("trials = 6", "trials = ", "is no TOML: Invalid value"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    with pytest.raises(SweepError, match=message) as raised:
        plans_of(tmp_path, GOOD.replace(old, new))

    assert len(str(raised.value).splitlines()) == 1


def test_the_documented_config_is_good(tmp_path: Path, tiny_backbone: Backbone) -> None:
    text = (Path(__file__).parents[3] / "docs" / "sweep.md").read_text("utf-8")
    plans = plans_of(tmp_path, text.split("```toml\n")[1].split("```")[0])

    check_plans(list(plans.values()), tiny_backbone)
    assert [*plans] == ["vpt-deep", "lspt", "lspt, narrow", "full"]
    assert plans["lspt, narrow"].options == {"coder_hidden": 48}


def test_a_missing_file_is_said() -> None:
    with pytest.raises(SweepError, match=r"nowhere\.toml cannot be read: No such file"):
        load_config(Path("nowhere.toml"))


def test_good_plans_pass(tmp_path: Path, tiny_backbone: Backbone) -> None:
    check_plans(list(plans_of(tmp_path, GOOD).values()), tiny_backbone)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("vpt-deep", "vpt-dep", "entry 'vpt-dep': unknown method 'vpt-dep'; .*nearest: vpt-deep"),
        ("num_prompts", "num_promts", "entry 'vpt-deep': unknown option 'num_promts'"),
        ("epochs = 12", "epochs = 0", "entry 'vpt-deep': epochs must be above 0, got 0"),
        ("epochs = 12", "warmup_epochs = inf", "'vpt-deep': warmup_epochs must be finite, got inf"),
        ("high = 1e-1", "high = inf", "entry 'vpt-deep': lr must be finite, got inf"),
        ("epochs = 12", 'epochs = "many"', "entry 'vpt-deep': epochs: Input should be a valid int"),
        ("epochs = 12", 'epochs = 12\ndevice = "gpu"', "entry 'vpt-deep': unknown device 'gpu'"),
        ("log = true", "log = false", "lr must be above 0, got -1"),
        ("[0.0, 0.01]", "[0.0, 0.1, -0.1]", "weight_decay must not be negative, got -0.1"),
        ("8 }", "8 }\npool = 'clss'", "unknown pool 'clss'"),
        ("options = { num_prompts = 8 }", "space.options.num_prompts = [3, 0]", "num_prompts must"),
        ('"vpt-deep"\noptions = { num_prompts = 8 }', '"linear"\ninit = "tokens"', "needs prompts"),
    ],
)
def test_values_that_cannot_be_trained_with_are_refused_before_any_work(
    tmp_path: Path, tiny_backbone: Backbone, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new).replace("1e-3, high = 1e-1, log = false", "-1, high = 1")
    plans: Any = plans_of(tmp_path, text).values()

    with pytest.raises(SweepError, match=message):
        check_plans(list(plans), tiny_backbone)
