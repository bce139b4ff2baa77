"""A real server with the page, and a real browser."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page
from toys_browser import opened, page_server, started_browser

from lspt_serve.models import Backbone


@pytest.fixture(scope="module")
def url(tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with page_server(tiny_backbone, tmp_path_factory) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """Empty; the server's addresses are known to it."""
    with opened(browser, url) as page:
        yield page
