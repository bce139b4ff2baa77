"""What those who run the service see of it: metrics, logs, readiness, its end."""

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from toys import coloured, encoded
from toys_server import Server, create_served, serving

from lspt_serve.models import Backbone

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
DASHBOARD = ROOT / "docs" / "grafana" / "lspt-serve.json"
PNG = encoded(coloured("red", np.random.default_rng(0), side=40))
TRACE = "0af7651916cd43dd8448eb211c80319c"
OF_TASKS = {"lspt_task_in_memory", "lspt_task_load_seconds_count"}
TWO_WORKERS = "services: {lspt: {workers: 2}}\n"


@pytest.fixture(scope="module")
def folder(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_served(tiny_backbone, tmp_path_factory)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Of two workers, after a request of every kind."""
    config = folder / "bentoml.yaml"
    config.write_text(TWO_WORKERS)
    environment = {
        "BENTOML_CONFIG": config,
        "LSPT_DEVICE": "cpu",
        "LSPT_ENGINE": "onnxruntime",
        "LSPT_LOG_FORMAT": "json",
    }
    with serving(folder=folder, environment=environment) as server:
        for _ in range(20):
            assert ask(server).status_code == 200
        assert ask(server, task="nobody").status_code == 404
        assert ask(server, image=b"garbage").status_code == 415
        yield server


def ask(server: Server, *, image: bytes = PNG, task: str = "colour") -> httpx.Response:
    """By a connection of its own."""
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "Authorization": "Bearer hidden"}
    files, data = {"image": image}, {"task": task}
    return httpx.post(f"{server.url}/classify", files=files, data=data, headers=headers, timeout=30)


def samples(server: Server) -> dict[str, float]:
    """The series at /metrics by name, without their labels; those of a name are added up."""
    text = httpx.get(f"{server.url}/metrics", timeout=20).text
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] += sample.value  # type: ignore[assignment]
    return dict(found)


def test_metrics_are_those_of_all_workers_together(server: Server) -> None:
    found = samples(server)

    assert found["lspt_requests_total"] == 22
    assert found["lspt_errors_total"] == 2
    assert found["lspt_queue_seconds_count"] == found["lspt_batch_size_sum"] == 20
    assert found["lspt_http_seconds_count"] == 22
    assert found["lspt_tasks_served"] == 2  # by every worker
    assert found["lspt_bundles_in_memory"] == 4  # two workers hold two each
    assert found["lspt_bundle_load_seconds_count"] == 4
    assert found["lspt_task_in_memory"] == found["lspt_task_load_seconds_count"] == 4
    assert found["lspt_task_queue_seconds_count"] == found["lspt_task_batch_size_count"] == 20
    assert found["lspt_task_engine_seconds_count"] == 20
    assert found.keys() >= OF_TASKS
    assert found["lspt_bundles_refused"] == found["lspt_evictions_total"] == 0


def test_every_metric_of_the_dashboard_is_one_of_the_server(server: Server) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    wanted = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    named = {name for expression in wanted for name in re.findall(r"\blspt_\w+", expression)}

    assert len(wanted) >= len(panels) / 2
    assert named <= samples(server).keys()
    assert {"lspt_requests_total", "lspt_batch_size_bucket"} <= named


def test_log_has_a_line_of_json_with_its_trace_for_every_request(server: Server) -> None:
    logged = server.log.read_text()
    lines = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
    requests = [line for line in lines if line["logger"] == "lspt_serve.access"]

    assert Counter((line["status"], line.get("task")) for line in requests) == {
        (200, "colour@1"): 20,
        (404, None): 1,
        (415, "colour@1"): 1,
    }
    assert {line["trace_id"] for line in requests} == {TRACE}
    assert len({line["request_id"] for line in requests}) == 22
    assert logged.count("/classify") == 2 * len(requests)  # the line's path and its message
    assert "hidden" not in logged


def test_service_is_ready_once_it_is_warm_and_answers_what_waits_at_its_end(folder: Path) -> None:
    environment = {
        "LSPT_DEVICE": "cpu",
        "LSPT_ENGINE": "onnxruntime",
        "LSPT_MAX_DELAY_MS": 1000,
        "LSPT_TASK_METRICS": "false",
    }
    with serving(folder=folder, environment=environment) as server:
        assert "serving 2 task(s)" in server.log.read_text()
        assert not samples(server).keys() & OF_TASKS
        batch = int(re.findall(r"batches of up to (\d+) images", server.log.read_text())[0])
        count = max(1, min(2, batch - 1))  # fewer than a batch: they wait for another to share it
        with ThreadPoolExecutor(count) as pool:
            waiting = [pool.submit(ask, server) for _ in range(count)]
            while samples(server)["lspt_images_waiting"] < count:
                assert not any(answer.done() for answer in waiting)
            os.kill(server.process.pid, signal.SIGTERM)
            assert not any(answer.done() for answer in waiting)
            assert {answer.result(timeout=30).status_code for answer in waiting} == {200}
        assert server.process.wait(timeout=30) == 0
        with pytest.raises(httpx.TransportError):
            ask(server)
