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
        ({1: 10, 2: 20, 4: 40, 8: 80, 16: 160}, 1),  # nothing gained
        ({1: 10, 2: 12, 4: 20, 8: 39.9, 16: 90}, 4),  # twice the rows in twice the time
        ({1: 10, 2: 11, 4: 12, 8: 13, 16: 14}, 16),  # to the limit
        ({1: 10, 2: 19.5, 4: 39, 8: 78, 16: 156}, 1),  # 2.6 % are not worth it
        ({1: 10, 2: 21, 4: 20, 8: 40, 16: 80}, 4),  # one bad measurement costs nothing
        ({1: 10, 2: 30}, 1),  # so bad that no more is measured
        ({1: 300, 2: 550, 4: 1001}, 4),  # so slow that no more is measured
    ],
)
def test_batches_grow_while_it_pays(milliseconds: dict[int, float], best: int) -> None:
    assert grow_while_it_pays(lambda size: milliseconds[size] / 1000, limit=16) == best


@pytest.mark.parametrize("limit", [1, 2, 8])
def test_real_engine_is_measured_within_the_limit(
    tiny_backbone: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
) -> None:
    engine = OnnxEngine(export_once(tiny_backbone, tmp_path_factory), device="cpu")

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
    engine = OnnxEngine(export_once(tiny_backbone, tmp_path_factory), device="cpu")
    monkeypatch.setattr(engine, "features", lambda images, _: time.sleep(image_s * len(images)))

    assert measure_pace(engine, limit=limit).batch_size == best
