"""The page on a server that wants a key, mocked, in a real browser."""

import pytest
from playwright.sync_api import Page, expect
from toys_browser import NEEDS_CHROMIUM, wants_key

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]


@pytest.fixture
def page(page: Page) -> Page:
    page.route("**/tasks", wants_key)
    page.goto("/")
    return page


def test_mocked_server_that_wants_a_key_gets_it(page: Page) -> None:
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    expect(page.locator("#key-reason")).to_have_text("wanted a key")
    for key in ("wrong", "right"):
        field.fill(key)
        field.press("Enter")
        expect(field).to_be_visible(visible=key == "wrong")
    expect(page.locator("#choices input")).to_have_count(10)
    assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]

    page.reload()
    expect(page.locator("#choices input")).to_have_count(10)
    page.get_by_role("button", name="Forget the key").click()
    expect(field).to_be_focused()
    assert page.evaluate("sessionStorage.length") == 0


def test_field_says_what_it_is_for_and_why(page: Page) -> None:
    form = page.get_by_role("form", name="This server asks for a key")

    expect(form.get_by_label("API key")).to_have_accessible_description(
        "wanted a key Kept in this tab alone, until it is closed."
    )


def test_key_that_cannot_be_sent_is_refused_in_its_field(page: Page) -> None:
    field = page.get_by_label("API key")
    field.fill("“right”")
    field.press("Enter")

    expect(field).to_be_focused()
    assert "such as a curly quote" in field.evaluate("field => field.validationMessage")
    assert page.evaluate("sessionStorage.length") == 0
    field.fill("right")
    field.press("Enter")
    expect(page.locator("#choices input")).to_have_count(10)
