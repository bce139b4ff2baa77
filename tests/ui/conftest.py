"""A real server with the page, and a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from toys_browser import create_site, opened, started_browser
from toys_server import served

from lspt_serve.models import Backbone


@pytest.fixture(scope="session")
def site(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is served; who changes its bundles changes them back."""
    return create_site(tiny_backbone, tmp_path_factory)


@pytest.fixture(scope="session")
def url(site: Path) -> Iterator[str]:
    with served("--engine", "onnxruntime", "--device", "cpu", folder=site) as url:
        yield url


@pytest.fixture(scope="module")  # while it runs there is no other event loop
def browser() -> Iterator[Browser]:
    with started_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """Empty; the server's addresses are known to it."""
    with opened(browser, url) as page:
        yield page
