import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from opentelemetry.util.http import parse_excluded_urls
from toys_proofs import toy_server
from toys_server import create_served, serving

from lspt_serve.models import Backbone
from lspt_serve.tracing import DISABLED, configure_tracing

MakesSpans = Callable[[dict[str, Any]], bool]
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def makes_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakesSpans]:
    """Whether BentoML's middleware makes any, by settings of tracing in a file that it is told of.

    BentoML's own service, and settings of all the process, which are put back.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a package that BentoML imports with it
        from bentoml import service
    toy: Any = service(name="toy")(type("Toy", (), {}))
    file, before = tmp_path / "bentoml.yaml", BentoMLContainer.config.get()
    monkeypatch.setenv("BENTOML_CONFIG", str(file))
    monkeypatch.delenv(DISABLED, raising=False)

    def found(tracing: dict[str, Any]) -> bool:
        file.write_text(json.dumps({"services": {"toy": {"tracing": tracing}}}))
        configure_tracing(toy)
        toy.inject_config()  # as BentoML does once more, before it makes the app
        excluded = parse_excluded_urls(BentoMLContainer.tracing.excluded_urls.get() or "")
        return not excluded.url_disabled("http://127.0.0.1:3000/classify")

    yield found
    BentoMLContainer.config.set(before)


@pytest.mark.parametrize(
    ("tracing", "made"),
    [({}, False), ({"exporter_type": "otlp"}, True), ({"excluded_urls": "tasks"}, True)],
)
def test_spans_are_made_where_something_collects_them(
    makes_spans: MakesSpans, tracing: dict[str, Any], made: bool
) -> None:
    assert makes_spans(tracing) == made


def test_who_set_opentelemetry_up_keeps_it(
    makes_spans: MakesSpans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DISABLED, "false")

    assert makes_spans({})


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
