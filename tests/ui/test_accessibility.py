"""The page as those find it who cannot see it, or see little of it: what axe has to say."""

from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from toys_browser import FILE, NEEDS_CHROMIUM, PNG, choose, mock_tasks, opened, wants_key

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]


def classify(page: Page, image: bytes = PNG) -> None:
    page.goto("/")
    choose(page, "colour", "parity")
    page.locator("#file").set_input_files(FILE | {"buffer": image})


def show_start(page: Page) -> None:
    page.goto("/")
    expect(page.locator("#choices input")).to_have_count(10)


def show_answers(page: Page) -> None:
    classify(page)
    page.get_by_role("button", name="Attention of colour").click()
    expect(page.locator("#overlay")).to_be_visible()


def show_refusals(page: Page) -> None:
    classify(page, b"this is a text file")
    expect(page.locator(".card .problem")).to_have_count(2)


def show_camera(page: Page) -> None:
    page.goto("/")
    page.get_by_role("button", name="Use the camera").click()
    expect(page.get_by_role("button", name="Take the picture")).to_be_enabled()


def show_tasks(page: Page) -> None:
    page.goto("/#tasks")
    page.locator("summary").first.click()
    expect(page.get_by_role("heading", name="Refused")).to_be_visible()


def show_no_tasks(page: Page) -> None:
    mock_tasks(page, refused={"flowers": "no head"})
    page.goto("/")
    expect(page.get_by_role("heading", name="No tasks yet")).to_be_visible()


def show_key(page: Page) -> None:
    page.route("**/tasks", wants_key)
    page.goto("/")
    expect(page.get_by_label("API key")).to_be_focused()


def show_offline(page: Page) -> None:
    show_start(page)
    page.context.set_offline(True)
    expect(page.locator("#offline")).to_be_visible(timeout=15_000)


STATES = [
    show_start,
    show_answers,
    show_refusals,
    show_camera,
    show_tasks,
    show_no_tasks,
    show_key,
    show_offline,
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("show", STATES, ids=lambda show: show.__name__.removeprefix("show_"))
def test_axe_finds_nothing(
    browser: Browser, url: str, show: Callable[[Page], None], scheme: Any
) -> None:
    with opened(browser, url, color_scheme=scheme, reduced_motion="reduce") as page:
        show(page)
        found = Axe().run(page)

    assert not found.response["violations"], found.generate_report()


def test_axe_finds_what_is_wrong(browser: Browser, url: str) -> None:
    """So that the other tests are known to be able to fail."""
    with opened(browser, url) as page:
        show_start(page)
        page.evaluate(
            "document.getElementById('choose').textContent = '';"
            "document.getElementById('picker-note').style.color = 'lightgrey';"
        )
        found = Axe().run(page)

    assert {rule["id"] for rule in found.response["violations"]} == {
        "button-name",
        "color-contrast",
    }
