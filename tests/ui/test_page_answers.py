"""Cards that are removed, replaced or not asked for, in a real browser on a real server."""

import pytest
from playwright.sync_api import Page, expect
from toys_browser import FILE, LABELS, MANY, NEEDS_CHROMIUM, card, check_answer, choose, held

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]

TEXT = FILE | {"name": "notes.png", "buffer": b"this is a text file"}


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


@pytest.mark.parametrize("wrong", ["", "0", "1001"])
def test_wrong_number_of_labels_is_explained_and_leaves_no_old_answers(
    page: Page, url: str, wrong: str
) -> None:
    choose(page, "colour")
    page.locator("#file").set_input_files(FILE)
    check_answer(page, url, "colour")
    field = page.get_by_label("Labels for each task")

    field.fill(wrong)
    page.locator("#file").set_input_files(FILE | {"name": "other.png"})

    expect(page.locator("figcaption")).to_contain_text("other.png")
    expect(page.get_by_role("alert")).to_have_text("A whole number from 1 to 1,000 is wanted.")
    expect(field).to_have_accessible_description("A whole number from 1 to 1,000 is wanted.")
    expect(page.get_by_role("article")).to_have_count(0)
    field.fill("2")
    field.press("Enter")
    check_answer(page, url, "colour", top_k=2)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_focus_goes_to_the_nearest_card_when_one_is_removed(page: Page, url: str) -> None:
    choose(page, "colour", "parity", "task-0")
    page.locator("#file").set_input_files(FILE)
    check_answer(page, url, "task-0")

    for removed, focused in {"parity": "task-0", "task-0": "colour", "colour": "Answers"}.items():
        page.get_by_role("button", name=f"Remove {removed}").press("Enter")
        expect(page.get_by_role("heading", name=focused, exact=True)).to_be_focused()


def test_task_that_is_asked_again_keeps_the_focus_and_is_not_removed(page: Page, url: str) -> None:
    choose(page, "colour")
    page.locator("#file").set_input_files(TEXT)
    again = page.get_by_role("button", name="Ask again: colour")
    expect(again).to_be_visible()

    with held(page, "**/classify?*"):
        again.press("Enter")
        expect(card(page, "colour").get_by_role("heading")).to_be_focused()
        page.keyboard.press("Enter")

    expect(again).to_be_visible()
    expect(card(page, "colour").get_by_role("heading")).to_be_focused()


def test_answer_that_comes_leaves_the_focus_on_the_same_button(page: Page, url: str) -> None:
    choose(page, "colour")
    remove = page.get_by_role("button", name="Remove colour")
    with held(page, "**/classify?*"):
        page.locator("#file").set_input_files(FILE)
        remove.focus()

    check_answer(page, url, "colour")
    expect(remove).to_be_focused()
