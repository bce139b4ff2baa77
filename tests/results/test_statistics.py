import pytest

from lspt_serve.results import Figure, mean_over_tasks, summarise
from lspt_serve.results.statistics import paired_difference


def test_mean_and_sample_standard_deviation() -> None:
    # deviations -2, 0, 2: squares sum to 8, over n - 1 = 2 is 4
    assert summarise([1.0, 3.0, 5.0]) == Figure(3.0, 2.0, 3)


def test_a_single_seed_has_no_standard_deviation() -> None:
    assert summarise([0.25]) == Figure(0.25, None, 1)


def test_mean_over_tasks_varies_as_the_seeds_means_do() -> None:
    # task means 0.3 and 0.6; seeds' means over tasks 0.4, 0.45, 0.5
    figure = mean_over_tasks([{0: 0.2, 1: 0.3, 2: 0.4}, {0: 0.6, 1: 0.6, 2: 0.6}])

    assert figure.mean == pytest.approx(0.45, abs=1e-12)
    assert figure.std == pytest.approx(0.05, abs=1e-12)
    assert figure.n == 3


def test_tasks_count_equally_whatever_their_seeds() -> None:
    # task means 0.2 and 0.8; all that they share are seeds 0 and 1, with means 0.4 and 0.6
    figure = mean_over_tasks([{0: 0.1, 1: 0.3, 2: 0.2}, {0: 0.7, 1: 0.9}])

    assert figure.mean == pytest.approx(0.5, abs=1e-12)
    assert figure.std == pytest.approx(0.02**0.5, abs=1e-12)
    assert figure.n == 2


def test_tasks_that_share_no_seed_have_a_mean_only() -> None:
    assert mean_over_tasks([{0: 0.5}, {1: 1.0}]) == Figure(0.75, None, 0)


def test_difference_is_taken_seed_by_seed() -> None:
    # by seed: (0.1 - 0.3 + 0.5 - 0.5) / 2 = -0.1 and (0.2 - 0.2 + 0.7 - 0.5) / 2 = 0.1
    own, other = {"a": {0: 0.1, 1: 0.2}, "b": {0: 0.5, 1: 0.7}}, {"a": {0: 0.3, 1: 0.2}}

    figure = paired_difference(own, other | {"b": {1: 0.5, 0: 0.5}})

    assert figure is not None
    assert figure.mean == pytest.approx(0.0, abs=1e-12)
    assert figure.std == pytest.approx(0.02**0.5, abs=1e-12)
    assert figure.n == 2


@pytest.mark.parametrize(
    "other",
    [
        {"a": {0: 0.5, 1: 0.5}},  # a task less
        {"a": {0: 0.5, 1: 0.5}, "b": {0: 0.5}},  # a seed less
        {"a": {0: 0.5, 2: 0.5}, "b": {0: 0.5, 2: 0.5}},  # other seeds
        {},
    ],
)
def test_what_cannot_be_paired_has_no_difference(other: dict[str, dict[int, float]]) -> None:
    own = {"a": {0: 0.5, 1: 0.5}, "b": {0: 0.5, 1: 0.5}}

    assert paired_difference(own, other) is None
    assert paired_difference(other, own) is None
