import os
from collections.abc import Iterator

import pytest
from bentoml._internal.configuration.containers import BentoMLContainer

from lspt_serve.tracing import DISABLED, configure_tracing


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
    BentoMLContainer.tracing.exporter_type.set(exporter)

    configure_tracing()

    assert os.environ.get(DISABLED) == disabled


def test_who_set_opentelemetry_up_keeps_it(untold: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLED, "false")

    configure_tracing()

    assert os.environ[DISABLED] == "false"
