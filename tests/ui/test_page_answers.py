"""Cards that are removed, replaced or not asked for, in a real browser on a real server."""

import pytest
from playwright.sync_api import Page, expect
from toys_browser import FILE, LABELS, MANY, NEEDS_CHROMIUM, check_answer, choose, held

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]


@pytest.fixture
def page(page: Page) -> Page:
    page.goto("/")
    return page


def test_one_task_less_leaves_the_others_their_answers(page: Page, url: str) -> None:
    choose(page, *LABELS, *MANY)
    waiting = page.locator(".card[aria-busy]")
    with held(page, "**/classify_many"):
        page.locator("#file").set_input_files(FILE)
        expect(waiting).to_have_count(10)
        page.get_by_role("button", name="Remove colour").click()
        page.get_by_role("checkbox", name="parity").uncheck()

    for task in MANY:
        check_answer(page, url, task)
    expect(waiting).to_have_count(0)
    expect(page.get_by_role("article")).to_have_count(8)


def test_request_for_many_tasks_ends_with_the_last_of_them(page: Page) -> None:
    choose(page, *LABELS, *MANY)
    with held(page, "**/classify_many"):
        page.locator("#file").set_input_files(FILE)
        expect(page.locator(".card[aria-busy]")).to_have_count(10)
        with page.expect_event("requestfailed") as failed:
            page.get_by_role("button", name="Clear").click()

    assert failed.value.url.endswith("/classify_many")
