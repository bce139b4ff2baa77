"""What stands between BentoML's server and the app."""

import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.applications import Starlette
from toys import coloured, encoded
from toys_api import Api, check_refused, create_classifier, overloaded
from toys_proofs import toy_server
from toys_server import create_served, serving

from lspt_serve.api.overload import RefuseEarly
from lspt_serve.api.timeout import ANSWER_S
from lspt_serve.models import Backbone

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a package that BentoML imports
    import bentoml
    from _bentoml_impl.server.app import ServiceAppFactory

    from lspt_serve.bentoml_app import DISABLED, configure_middleware, configure_unknown_paths

TRACE = "0af7651916cd43dd8448eb211c80319c"
PNG = encoded(coloured("red", np.random.default_rng(0)))
Serve = Callable[..., Starlette]


@pytest.fixture(scope="module")
def api(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(create_classifier(tiny_backbone, tmp_path_factory))


@pytest.fixture
def serve(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """What BentoML's server runs, by settings of a service in a file that BentoML is told of.

    The settings are of all the process, and are put back.
    """
    settings = {"name": "toy", "metrics": {"enabled": False}}
    toy: Any = bentoml.service(**settings)(bentoml.asgi_app(api.app)(type("Toy", (), {})))
    file, before = tmp_path / "bentoml.yaml", BentoMLContainer.config.get()
    monkeypatch.setenv("BENTOML_CONFIG", str(file))
    monkeypatch.delenv(DISABLED, raising=False)
    for name in ("middlewares", "__call__"):
        monkeypatch.setattr(ServiceAppFactory, name, getattr(ServiceAppFactory, name))

    def to_app(**settings: Any) -> Starlette:
        file.write_text(json.dumps({"services": {"toy": settings}}))
        configure_middleware(api.app)
        configure_unknown_paths(api.app)
        app: Starlette = toy.to_asgi()
        return app

    yield to_app
    BentoMLContainer.config.set(before)
    api.app.state.answer_s = ANSWER_S


def classes(app: Starlette) -> list[object]:
    """Of what stands before the routes, outermost first."""
    return [each.cls for each in app.user_middleware]


def ask(app: Starlette, method: str, path: str, **settings: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app)

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.request(method, f"http://test{path}", **settings)

    return anyio.run(send)


def refuse(app: Starlette, api: Api, monkeypatch: pytest.MonkeyPatch) -> httpx.Response:
    """What a browser gets that sends an image to a server that is too busy."""
    headers = {"Content-Type": "image/png", "Origin": "http://elsewhere"}
    with overloaded(api.app.state.classifier, monkeypatch):
        return ask(app, "POST", "/classify?task=colour", content=PNG, headers=headers)


def test_image_is_refused_before_the_routes(
    serve: Serve, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = serve()
    app.router.routes.clear()

    assert classes(app)[-1] is RefuseEarly
    check_refused(refuse(app, api, monkeypatch), 503, "overloaded")


def test_page_of_another_origin_may_read_a_refusal(
    serve: Serve, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = BentoMLContainer.access_control_options
    monkeypatch.setattr(options, "_override", {"allow_origins": ["http://elsewhere"]})

    refused = refuse(serve(http={"cors": {"enabled": True}}), api, monkeypatch)

    check_refused(refused, 503, "overloaded")
    assert refused.headers["Access-Control-Allow-Origin"] == "http://elsewhere"


@pytest.mark.parametrize(
    "path", ["/nowhere", "/tasks/", "/tasks/?\xff", "//elsewhere/tasks", "/livez/", "/v2x"]
)
def test_path_that_no_route_is_for_is_answered_as_all_else(
    serve: Serve, api: Api, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level("INFO", "lspt_serve.access")
    response = ask(serve(), "GET", path, headers={"Host": "evil.example"})

    check_refused(response, 404, "not_found")
    assert "Location" not in response.headers
    assert response.headers["X-Request-ID"] in caplog.text


def test_paths_of_bentoml_and_of_the_app_are_not_unknown(serve: Serve) -> None:
    app = serve()

    assert [ask(app, "GET", path).status_code for path in ("/livez", "/docs.json", "/tasks")] == [
        200,
        200,
        200,
    ]
    assert ask(app, "GET", "/v2/models/colour/stats").json().keys() == {"error"}
    check_refused(ask(app, "PUT", "/classify"), 405, "method_not_allowed")


def test_app_keeps_the_limit_of_time_that_bentoml_is_told_of(serve: Serve, api: Api) -> None:
    assert TimeoutMiddleware not in classes(serve())
    assert api.app.state.answer_s == ANSWER_S

    assert TimeoutMiddleware not in classes(serve(traffic={"timeout": 7}))
    assert api.app.state.answer_s == 7


def test_spans_are_made_where_something_collects_them(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert OpenTelemetryMiddleware not in classes(serve())
    assert OpenTelemetryMiddleware in classes(serve(tracing={"exporter_type": "otlp"}))
    monkeypatch.setenv(DISABLED, "false")  # by who set OpenTelemetry up himself
    assert OpenTelemetryMiddleware in classes(serve())


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
