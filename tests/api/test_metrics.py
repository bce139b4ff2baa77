import errno
import os

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families
from toys import coloured, encoded
from toys_api import Api, create_classifier, leave_busy

from lspt_serve.api.metrics import Metrics
from lspt_serve.bundle import save_bundle
from lspt_serve.models import Backbone

PNG = encoded(coloured("red", np.random.default_rng(0), side=40))
Array = NDArray[np.float32]
Labels = dict[str, str]


@pytest.fixture
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Api:
    metrics = Metrics()
    api = Api(create_classifier(tiny_backbone, tmp_path_factory, events=metrics))
    api.app.state.metrics = metrics
    return api


def values(api: Api, name: str) -> list[tuple[Labels, float]]:
    """Of a metric's series at GET /metrics, without those that are 0."""
    families = text_string_to_metric_families(api.request("GET", "/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    return [
        (sample.labels, sample.value) for sample in samples if sample.name == name and sample.value
    ]


def test_images_are_counted_by_task_version_and_code(api: Api) -> None:
    for _ in range(2):
        api.classify(PNG, task="colour@1")
    api.classify(PNG[:60], task="parity")
    api.classify(b"garbage", task="parity")

    assert values(api, "lspt_requests_total") == [
        ({"task": "colour", "version": "1", "code": "ok"}, 2),
        ({"task": "parity", "version": "1", "code": "undecodable"}, 1),
        ({"task": "parity", "version": "1", "code": "unsupported_format"}, 1),
    ]


def test_an_image_that_does_not_decode_counts_for_every_task_that_it_was_asked_of(
    api: Api,
) -> None:
    form = {"tasks": ["colour", "parity"]}
    api.request("POST", "/classify_many", files=[("images", PNG[:60])], data=form)

    assert values(api, "lspt_requests_total") == [
        ({"task": name, "version": "1", "code": "undecodable"}, 1) for name in form["tasks"]
    ]


def test_what_callers_make_up_is_no_label(api: Api) -> None:
    for name in ("nobody", "colour@7", "no:alias"):
        api.classify(PNG, task=name)
        api.request("GET", f"/tasks/{name}")
        api.request("GET", f"/{name}")
        api.request(name.upper()[:6], "/classify")

    text = api.request("GET", "/metrics").text
    assert not any(word in text.lower() for word in ("nobody", '"7"', "alias"))
    assert values(api, "lspt_requests_total") == [
        ({"task": "", "version": "", "code": "unknown_task"}, 3)
    ]
    routes = {labels["route"] for labels, _ in values(api, "lspt_http_seconds_count")}
    assert routes == {"/classify", "/tasks/{name}", ""}


def test_what_an_image_took_is_told_by_task_and_version(api: Api) -> None:
    form = {"tasks": ["colour", "parity", "colour"]}
    api.request("POST", "/classify_many", files=[("images", PNG)], data=form)

    for name in ("queue_seconds", "engine_seconds", "batch_size"):
        assert values(api, f"lspt_task_{name}_count") == [
            ({"task": "colour", "version": "1"}, 2),
            ({"task": "parity", "version": "1"}, 1),
        ]
    (_, of_colour), (_, of_parity) = values(api, "lspt_task_batch_size_sum")
    ((_, of_batches),) = values(api, "lspt_batch_size_sum")
    assert of_batches == 3
    assert 2 <= of_colour <= 6
    assert 1 <= of_parity <= 3


def test_what_is_in_memory_is_told_by_task_and_version(api: Api) -> None:
    classifier, metrics = api.app.state.classifier, api.app.state.metrics
    both = [({"task": name, "version": "1"}, 1.0) for name in ("colour", "parity")]

    assert values(api, "lspt_task_in_memory") == both
    assert values(api, "lspt_task_load_seconds_count") == both
    assert values(api, "lspt_task_evictions_total") == []
    save_bundle(classifier.store["colour"], classifier.store.folder / "colour")
    classifier.store.unload("parity")
    assert values(api, "lspt_task_in_memory") == both[:1]
    assert values(api, "lspt_task_load_seconds_count")[0][1] == 2
    metrics.went(classifier.manifest("colour"), evicted=True)
    assert values(api, "lspt_task_in_memory") == []
    assert values(api, "lspt_task_evictions_total") == both[:1]


def test_refusals_are_counted_by_code(api: Api) -> None:
    api.classify(PNG, task="nobody")
    api.classify(b"garbage")
    api.classify(b"garbage")
    api.classify(PNG)
    api.request("GET", "/tasks/nobody")

    assert values(api, "lspt_errors_total") == [
        ({"code": "unknown_task"}, 2),
        ({"code": "unsupported_format"}, 2),
    ]


def test_an_error_of_the_server_is_counted(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes, bundle: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(api.app.state.classifier, "decode", fail)
    assert api.classify(PNG).status_code == 500

    assert values(api, "lspt_errors_total") == [({"code": "internal"}, 1)]
    assert values(api, "lspt_http_seconds_count") == [({"route": "/classify", "status": "500"}, 1)]


def test_a_caller_who_left_is_counted(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_busy(api, monkeypatch, "/classify", files={"image": PNG}, data={"task": "colour"})

    assert values(api, "lspt_errors_total") == [({"code": "client_gone"}, 1)]
    assert values(api, "lspt_requests_total") == [
        ({"task": "colour", "version": "1", "code": "client_gone"}, 1),
        ({"task": "colour", "version": "1", "code": "ok"}, 1),
    ]


def test_what_cannot_be_counted_is_answered_all_the_same(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*given: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    for metric in (MetricWrapperBase, Histogram, Counter, Gauge):
        for method in ("labels", "observe", "inc", "set"):
            if hasattr(metric, method):
                monkeypatch.setattr(metric, method, fail)

    answer = api.classify(PNG)

    assert answer.status_code == 200
    assert "not counted: [Errno 24] Too many open files" in caplog.messages
