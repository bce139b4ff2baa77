import json
import os
import time
from collections.abc import Iterator

import httpx
import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from toys_proofs import toy_server
from toys_server import create_served, serving

from lspt_serve.models import Backbone
from lspt_serve.tracing import DISABLED, configure_tracing

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Service:
    """Has BentoML's settings be its own."""

    def __init__(self, exporter: str | None) -> None:
        self.exporter = exporter

    def inject_config(self) -> None:
        BentoMLContainer.tracing.exporter_type.set(self.exporter)


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(DISABLED, "")  # so that what the test sets is undone
    monkeypatch.delenv(DISABLED)
    yield
    BentoMLContainer.tracing.exporter_type.set(None)


@pytest.mark.parametrize(("exporter", "disabled"), [(None, "true"), ("otlp", None)])
def test_spans_are_made_where_something_collects_them(
    untold: None, exporter: str | None, disabled: str | None
) -> None:
    configure_tracing(Service(exporter))

    assert os.environ.get(DISABLED) == disabled


def test_who_set_opentelemetry_up_keeps_it(untold: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLED, "false")

    configure_tracing(Service(None))

    assert os.environ[DISABLED] == "false"


@pytest.mark.slow
def test_a_collector_that_bentoml_is_told_of_gets_a_span_of_a_request(
    tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs '.[tracing]'")
    folder = create_served(tiny_backbone, tmp_path_factory)
    sent: list[tuple[str, bytes]] = []

    def collect(path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        sent.append((path, body))
        return 200, {}, b""

    with toy_server(collect) as port:
        otlp = {"protocol": "http", "endpoint": f"http://127.0.0.1:{port}/v1/traces"}
        tracing = {"exporter_type": "otlp", "sample_rate": 1.0, "otlp": otlp}
        config = {"services": {"lspt": {"tracing": tracing}}}
        (folder / "bentoml.yaml").write_text(json.dumps(config))
        environment = {"BENTOML_CONFIG": folder / "bentoml.yaml", "LSPT_ENGINE": "onnxruntime"}
        with serving(folder=folder, environment=environment) as server:
            headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
            assert httpx.get(f"{server.url}/tasks", headers=headers).status_code == 200
            end = time.monotonic() + 30
            while not any(bytes.fromhex(TRACE) in body for _, body in sent):
                assert time.monotonic() < end, (sent, server.log.read_text())
                time.sleep(0.1)

    assert {path for path, _ in sent} == {"/v1/traces"}
