"""The view of tasks, and what the page does on servers of other kinds, in a real browser."""

import shutil
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from toys import random_bundle
from toys_browser import BROKEN, LABELS, NEEDS_CHROMIUM, mock_tasks, opened, task

from lspt_serve.bundle import save_bundle
from lspt_serve.models import Backbone

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]


def test_table_shows_what_is_served(page: Page, url: str) -> None:
    page.goto("/#tasks")

    rows = page.locator("#rows").get_by_role("row")
    expect(rows).to_have_count(10)
    columns = ["Task", "Version", "Labels", "Method", "Test accuracy", "In memory"]
    expect(page.get_by_role("columnheader")).to_have_text(columns)  # no task has an alias
    listed = httpx.get(f"{url}/tasks").json()
    for row, known in zip(rows.all(), listed["tasks"], strict=True):
        expect(row.get_by_role("rowheader")).to_have_text(known["name"])
        expect(row).to_contain_text(known["method"])
        expect(row.locator("summary")).to_contain_text(f"{len(known['labels'])} labels")
        expect(row.get_by_role("cell").nth(-2)).to_have_text("not measured")
        in_memory = "yes" if known["resident"] else "no"
        expect(row.get_by_role("cell").last).to_have_text(in_memory)
    row = page.get_by_role("row", name="colour")
    row.locator("summary").click()
    expect(row.locator("details p")).to_have_text(", ".join(LABELS["colour"]))
    refused = page.get_by_role("region", name="Refused")
    expect(refused.get_by_role("term")).to_have_text(BROKEN)
    expect(refused.get_by_role("definition")).to_have_text(listed["refused"][BROKEN])


def test_table_is_filtered_by_names_and_labels(page: Page) -> None:
    page.goto("/#tasks")
    rows = page.locator("#rows").get_by_role("row")
    expect(rows).to_have_count(10)

    for typed, count in {"odd": 1, "TASK-": 8, "lspt": 10, "task yes": 8, "nothing": 0}.items():
        page.get_by_label("Filter the tasks").fill(typed)
        expect(rows).to_have_count(count)
    expect(page.get_by_text("No task matches")).to_be_visible()


def test_table_keeps_up_with_the_folder_and_lets_the_reader_read(
    page: Page, tiny_backbone: Backbone, site: Path
) -> None:
    page.set_viewport_size({"width": 900, "height": 300})
    page.goto("/#tasks")
    page.get_by_role("row", name="parity").locator("summary").click()
    scrolled = page.evaluate("scrollTo(0, 260), scrollY")
    assert scrolled > 0
    late = random_bundle(tiny_backbone, name="late", seed=77, num_prompts=2)

    save_bundle(late, site / "bundles" / "late")
    rows = page.locator("#rows").get_by_role("row")
    expect(page.get_by_role("row", name="late")).to_have_count(1, timeout=20_000)

    expect(page.get_by_role("row", name="parity").locator("summary")).to_be_focused()
    expect(page.get_by_role("row", name="parity").locator("details")).to_have_attribute("open", "")
    shift = page.evaluate("scrollY") - scrolled
    assert shift == pytest.approx(0, abs=60)  # a row's height: browsers keep what is read in place
    shutil.rmtree(site / "bundles" / "late")
    expect(rows).to_have_count(10, timeout=20_000)


def test_other_view_takes_the_focus_and_the_title(page: Page) -> None:
    page.goto("/")
    assert page.title() == "Classify · lspt-serve"
    page.get_by_role("link", name="Tasks 10").click()

    expect(page.get_by_role("heading", name="Tasks", exact=True)).to_be_focused()
    assert page.title() == "Tasks · lspt-serve"
    expect(page.get_by_role("link", name="Tasks 10")).to_have_attribute("aria-current", "page")
    page.go_back()
    expect(page.get_by_role("heading", name="Classify an image")).to_be_focused()


def test_what_is_read_keeps_the_focus_when_its_row_changes(page: Page) -> None:
    mock_tasks(page, task("flowers", resident=False))
    page.goto("/#tasks")
    row = page.get_by_role("row", name="flowers")
    row.locator("summary").press("Enter")

    mock_tasks(page, task("flowers", resident=True))

    expect(row.get_by_role("cell").last).to_have_text("yes", timeout=20_000)
    expect(row.locator("summary")).to_be_focused()
    expect(row.locator("details")).to_have_attribute("open", "")


def test_skip_link_stays_in_the_view(page: Page) -> None:
    mock_tasks(page, task("one"))
    page.goto("/#tasks")
    rows = page.locator("#rows").get_by_role("row")
    expect(rows).to_have_count(1)
    page.get_by_role("link", name="To the content").press("Enter")
    expect(page.locator("#main")).to_be_focused()

    mock_tasks(page, task("one"), task("two"))

    expect(rows).to_have_count(2, timeout=20_000)
    assert page.title() == "Tasks · lspt-serve"


def test_view_that_there_is_not_is_the_first(page: Page) -> None:
    page.goto("/#constructor")

    expect(page.get_by_role("heading", name="Classify an image")).to_be_visible()
    assert page.title() == "Classify · lspt-serve"


def test_nothing_moves_for_those_who_want_it_so(browser: Browser, url: str) -> None:
    count = (
        "document.getAnimations().length + [...document.querySelectorAll('*')].filter("
        "e => parseFloat(getComputedStyle(e).transitionDuration) > 0).length"
    )
    with opened(browser, url, reduced_motion="reduce") as page:
        page.goto("/")
        expect(page.locator("#choices input").first).to_be_visible()
        assert page.evaluate(count) == 0
    with opened(browser, url, reduced_motion="no-preference") as page:
        page.goto("/")
        expect(page.locator("#choices input").first).to_be_visible()
        assert page.evaluate(count) > 0


def test_picker_and_table_find_one_of_a_thousand_mocked_tasks(page: Page) -> None:
    mock_tasks(page, *(task(f"species-{number:04}") for number in range(1000)))
    page.goto("/")
    boxes = page.locator("#choices input")
    expect(boxes).to_have_count(100)
    expect(page.locator("#picker-note")).to_have_text(
        "0 of 1,000 tasks chosen; 900 more: type a name"
    )

    page.get_by_label("Find a task").press_sequentially("0777")
    expect(boxes).to_have_count(1)
    page.get_by_role("checkbox", name="species-0777").check()
    page.get_by_label("Find a task").fill("")

    expect(boxes.first).to_have_value("species-0777")  # what is chosen comes first
    expect(boxes.first).to_be_checked()
    page.goto("/#tasks")
    rows = page.locator("#rows").get_by_role("row")
    expect(rows).to_have_count(200)
    page.get_by_role("button", name="Show more of the 1,000 tasks").click()
    expect(rows).to_have_count(400)
    page.get_by_label("Filter the tasks").fill("0999")
    expect(rows).to_have_count(1)


def test_what_the_search_finds_is_said_once(page: Page) -> None:
    mock_tasks(page, *(task(f"species-{number}") for number in range(9)))
    page.goto("/")
    page.get_by_label("Find a task").fill("flowers")
    note = page.get_by_role("status").filter(has_text="none has such a name")
    expect(note).to_have_text("0 of 9 tasks chosen; none has such a name")
    said = note.evaluate_handle("note => note.firstChild")

    mock_tasks(page, *(task(f"species-{number}", resident=True) for number in range(9)))

    in_memory = page.locator("#rows [data-column='In memory']")
    expect(in_memory).to_have_text(["yes"] * 9, timeout=20_000)
    assert note.evaluate("(note, said) => note.firstChild === said", said)


def test_few_mocked_tasks_are_all_chosen_at_the_start(page: Page) -> None:
    mock_tasks(page, task("one"), task("two"))
    page.goto("/")

    expect(page.locator("#choices input:checked")).to_have_count(2)
    expect(page.get_by_label("Find a task")).to_be_hidden()
    expect(page.get_by_text("Choose an image, and the answers come here.")).to_be_visible()


def test_mocked_server_without_tasks_explains_what_to_do(page: Page) -> None:
    mock_tasks(page, refused={"flowers": "no head"})
    page.goto("/")

    expect(page.get_by_role("heading", name="No tasks yet")).to_be_visible()
    expect(page.get_by_text("lspt train --backbone")).to_be_visible()
    expect(page.get_by_role("heading", name="Classify an image")).to_be_hidden()
    page.get_by_role("link", name="see why").click()
    expect(page.get_by_text("no head")).to_be_visible()


def test_mocked_aliases_accuracy_and_memory_are_shown(page: Page) -> None:
    measured = {"aliases": {"stable": 1}, "metrics": {"test_accuracy": 0.9712}, "resident": True}
    mock_tasks(page, task("flowers", version=2, **measured), task("birds", resident=False))
    page.goto("/#tasks")

    cells = page.get_by_role("row", name="flowers").get_by_role("cell")
    expect(cells).to_have_text(["2", "stable → 1", "2 labels of flowers", "lspt", "97.1%", "yes"])
    expect(page.get_by_role("row", name="birds").get_by_role("cell").last).to_have_text("no")


def test_server_that_goes_away_is_said_to_be_away_until_it_is_back(page: Page) -> None:
    page.goto("/")
    expect(page.locator("#choices input")).to_have_count(10)
    page.context.set_offline(True)

    alert = page.locator("#offline")
    expect(alert).to_have_text(
        "The list of tasks cannot be read: the server does not answer. Trying again.",
        timeout=15_000,
    )
    expect(page.locator("#choices input")).to_have_count(10)
    page.context.set_offline(False)
    expect(alert).to_be_hidden(timeout=15_000)
