import time
from typing import Any

import pytest
from toys import export_once

from lspt_serve.models import Backbone
from lspt_serve.runtime import OnnxEngine
from lspt_serve.runtime.batch_size import grow_while_it_pays, measure_pace


@pytest.mark.parametrize(
    ("milliseconds", "best"),
    [
        ({1: 10, 2: 20, 4: 40}, 1),  # nothing gained: no more is measured
        ({1: 10, 2: 12, 4: 20, 8: 39.9, 16: 90}, 4),  # twice the rows in twice the time
        ({1: 10, 2: 11, 4: 12, 8: 13, 16: 14}, 16),  # to the limit
        ({1: 10, 2: 19.5, 4: 39}, 1),  # 2.6 % are not worth it
        ({1: 10, 2: 21, 4: 20, 8: 40, 16: 80}, 4),  # one bad measurement costs nothing
        ({1: 75, 2: 138, 4: 251}, 4),  # so slow that no more is measured
    ],
)
def test_batches_grow_while_it_pays(milliseconds: dict[int, float], best: int) -> None:
    seconds = {size: each / 1000 for size, each in milliseconds.items()}

    size, taken = grow_while_it_pays(lambda size: seconds[size], limit=16)

    assert size == best
    assert taken == pytest.approx(seconds[best])


def test_every_size_is_measured_again_and_its_better_time_counts() -> None:
    """At first another process was in the way of batches of 2."""
    seconds = {1: iter([0.01, 0.01]), 2: iter([0.03, 0.012]), 4: iter([0.03, 0.026])}

    assert grow_while_it_pays(lambda size: next(seconds[size]), limit=4) == (2, 0.012)


@pytest.mark.parametrize("limit", [1, 2, 8])
def test_real_engine_is_measured_within_the_limit(
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
) -> None:
    folder = export_once(tiny_backbone, tmp_path_factory)
    engine = OnnxEngine(folder, device="cpu", num_beside=1)

    best, images_per_s = measure_pace(engine, limit=limit)
    assert best in {1, 2, 4, 8}
    assert best <= limit
    assert images_per_s > 0
    features = engine.features

    def wait(*batch: Any) -> Any:
        time.sleep(0.05)
        return features(*batch)

    monkeypatch.setattr(engine, "features", wait)
    slow = measure_pace(engine, limit=limit)

    assert slow.batch_size == limit  # a batch of any size takes 50 ms
    assert limit / 0.1 < slow.images_per_s < limit / 0.05


@pytest.mark.parametrize(("image_s", "limit", "best"), [(0.002, 8, 8), (0.3, 2, 1)])
def test_batches_share_what_passes_between_them(
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    image_s: float,
    limit: int,
    best: int,
) -> None:
    """3 ms, of an engine no faster in larger batches: much beside 2 ms, little beside 300."""
    folder = export_once(tiny_backbone, tmp_path_factory)
    engine = OnnxEngine(folder, device="cpu", num_beside=1)
    monkeypatch.setattr(engine, "features", lambda images, _: time.sleep(image_s * len(images)))

    assert measure_pace(engine, limit=limit).batch_size == best


@pytest.mark.parametrize("num_beside", [1, 3])
def test_as_many_batches_are_measured_at_a_time_as_the_engine_takes(
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    num_beside: int,
) -> None:
    folder = export_once(tiny_backbone, tmp_path_factory)
    engine = OnnxEngine(folder, device="cpu", num_beside=1)
    monkeypatch.setattr(engine, "num_beside", num_beside)
    monkeypatch.setattr(engine, "features", lambda *_: time.sleep(0.05))

    pace = measure_pace(engine, limit=1)

    assert num_beside / 0.1 < pace.images_per_s < num_beside / 0.05
