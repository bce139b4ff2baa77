"""The dashboard's questions, put to a real Prometheus that watches a real server."""

import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from toys import coloured, encoded, random_bundle
from toys_server import Server, create_served, free_port, serving

from lspt_serve.bundle import save_bundle
from lspt_serve.models import Backbone

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PROMETHEUS and PROMTOOL), reason="no prometheus in PATH: apt-get install prometheus"
    ),
]

DASHBOARD = Path(__file__).resolve().parents[1] / "docs" / "grafana" / "lspt-serve.json"
CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs: [{{job_name: lspt, static_configs: [{{targets: ["{target}"]}}]}}]
"""
CHOSEN = {"$job": "lspt", "$task": ".*", "$__rate_interval": "30s"}  # as Grafana puts them in
PNG = encoded(coloured("red", np.random.default_rng(0), side=40))


def questions() -> dict[str, str]:
    """PromQL by panel."""
    found: dict[str, str] = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            asked = re.sub(r"\$\w+", lambda name: CHOSEN[name[0]], target["expr"])
            name = f"{panel['title']}, {target['refId']}"
            assert name not in found, "two panels of one title"
            found[name] = asked
    return found


@pytest.fixture(scope="module")
def folder(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_served(tiny_backbone, tmp_path_factory)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    environment = {"LSPT_DEVICE": "cpu", "LSPT_ENGINE": "onnxruntime"}
    with serving(folder=folder, environment=environment) as server:
        yield server


@contextmanager
def watching(server: Server, folder: Path) -> Iterator[httpx.Client]:
    """The API of a Prometheus, until the block ends."""
    assert PROMETHEUS
    config, address = folder / "prometheus.yaml", f"127.0.0.1:{free_port()}"
    config.write_text(CONFIG.format(target=server.url.removeprefix("http://")))
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'prometheus'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    with httpx.Client(base_url=f"http://{address}/api/v1", timeout=20) as client:
        try:
            yield client
        finally:
            process.terminate()
            process.wait(timeout=20)


def ask_prometheus(client: httpx.Client, question: str) -> dict[str, float]:
    """What is a number now, by the values of its labels; nothing while it only starts."""
    try:
        answer = client.get("/query", params={"query": question})
    except httpx.ConnectError:
        return {}
    if answer.status_code == 503:
        return {}
    assert answer.status_code == 200, answer.text
    series: list[dict[str, Any]] = answer.json()["data"]["result"]
    values = {",".join(each["metric"].values()): float(each["value"][1]) for each in series}
    return {labels: value for labels, value in values.items() if math.isfinite(value)}


def work(server: Server, folder: Path, backbone: Backbone, number: int) -> None:
    """A new task, which is read; images that are answered, and one that is not."""
    late = f"late-{number}"
    bundle = random_bundle(backbone, name=late, seed=number, num_prompts=2)
    save_bundle(bundle, folder / "bundles" / late)
    while httpx.get(f"{server.url}/tasks/{late}", timeout=20).status_code != 200:
        time.sleep(0.1)
    for task, image in (("colour", PNG), ("parity", PNG), (late, PNG), ("colour", b"garbage")):
        data = {"task": task}
        httpx.post(f"{server.url}/classify", files={"image": image}, data=data, timeout=30)


def test_every_question_of_the_dashboard_has_an_answer(
    server: Server, folder: Path, tiny_backbone: Backbone
) -> None:
    asked, got, rounds = questions(), dict[str, dict[str, float]](), 0
    with watching(server, folder) as client:
        end = time.monotonic() + 60
        while (unanswered := [name for name in asked if not got.get(name)]) or rounds < 8:
            assert time.monotonic() < end, unanswered
            rounds += 1
            work(server, folder, tiny_backbone, rounds)
            got = {name: ask_prometheus(client, question) for name, question in asked.items()}

    assert got["Tasks, A"][""] == pytest.approx(2 + rounds, abs=1)  # it looks every second
    assert got["Share of images without an answer, by task, A"]["colour"] == pytest.approx(
        0.5, abs=0.2
    )


def test_prometheus_likes_the_metrics(server: Server) -> None:
    assert PROMTOOL
    metrics = httpx.get(f"{server.url}/metrics", timeout=20).content

    checked = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=metrics, capture_output=True, timeout=60
    )

    assert (checked.returncode, checked.stderr, checked.stdout) == (0, b"", b"")
