"""The view that classifies, in a real browser on a real server."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from toys import coloured, encoded
from toys_browser import (
    FILE,
    LABELS,
    MANY,
    NEEDS_CHROMIUM,
    PNG,
    ask,
    card,
    check_answer,
    choose,
    last_images,
    opened,
)

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]

TRANSFER = """([name, bytes]) => {
  const transfer = new DataTransfer();
  const content = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
  transfer.items.add(new File([content], name, { type: "image/png" }));
  return transfer;
}"""
COPY = """async (bytes) => {
  const content = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
  const image = new Blob([content], { type: "image/png" });
  await navigator.clipboard.write([new ClipboardItem({ "image/png": image })]);
}"""


@pytest.fixture
def page(page: Page) -> Page:
    page.goto("/")
    return page


def test_image_is_classified_by_two_tasks(page: Page, url: str) -> None:
    choose(page, "colour", "parity")
    page.locator("#file").set_input_files(FILE)

    check_answer(page, url, "colour")
    check_answer(page, url, "parity")
    assert page.get_by_role("article").count() == 2
    assert "version 1" in card(page, "colour").inner_text()
    time = card(page, "colour").locator(".time")
    assert re.search(
        r"ms there and back\. .* in the server: decoding .*, model ", time.inner_text()
    )
    best = {task: ask(url, task)["predictions"][0] for task in LABELS}
    said = ". ".join(f"{t}: {b['label']}, {b['score']:.1%}" for t, b in best.items())
    expect(page.get_by_role("status").last).to_have_text(said)


def test_task_that_is_chosen_later_is_asked_alone(page: Page, url: str) -> None:
    choose(page, "colour")
    page.locator("#file").set_input_files(FILE)
    check_answer(page, url, "colour")

    choose(page, "parity")

    check_answer(page, url, "parity")
    sent = page.evaluate("window.sent.map(({ path }) => path)")
    assert sent == ["classify?task=colour", "classify?task=parity"]
    card(page, "colour").get_by_role("button", name="Remove colour").click()
    expect(page.get_by_role("article")).to_have_count(1)
    expect(page.locator("#choices input:checked")).to_have_count(1)


def test_more_or_fewer_labels_are_shown(page: Page, url: str) -> None:
    choose(page, "colour")
    page.locator("#file").set_input_files(FILE)
    check_answer(page, url, "colour")

    page.get_by_label("Labels for each task").fill("2")
    page.get_by_label("Labels for each task").blur()

    check_answer(page, url, "colour", top_k=2)


def test_image_is_dropped(page: Page, url: str) -> None:
    choose(page, "colour")
    transfer = page.evaluate_handle(TRANSFER, ["red.png", base64.b64encode(PNG).decode()])
    page.locator("#answers").dispatch_event("dragover", {"dataTransfer": transfer})
    expect(page.locator("#drop")).to_have_class("drop over")
    page.locator("#answers").dispatch_event("drop", {"dataTransfer": transfer})

    check_answer(page, url, "colour")
    assert last_images(page, "image") == [PNG]
    expect(page.locator("#drop")).to_have_class("drop filled")
    expect(page.locator("figcaption")).to_contain_text("red.png, 120")


def test_image_is_pasted(browser: Browser, url: str) -> None:
    with opened(browser, url, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.goto("/")
        choose(page, "colour")
        page.evaluate(COPY, base64.b64encode(PNG).decode())
        page.keyboard.press("Control+V")

        check_answer(page, url, "colour")
        (pasted,) = last_images(page, "image")
        got, wanted = (Image.open(io.BytesIO(data)).convert("RGB") for data in (pasted, PNG))
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))


def test_refused_image_shows_what_the_server_says(page: Page, url: str) -> None:
    choose(page, "colour", "parity")
    text = b"this is a text file"
    page.locator("#file").set_input_files(FILE | {"buffer": text})

    for task in ("colour", "parity"):
        error = ask(url, task, text)["error"]
        expect(card(page, task).locator(".problem")).to_have_text(error["message"])
        expect(card(page, task).locator(".time")).to_contain_text("unsupported_format, request ")
    expect(page.get_by_text("The browser cannot show this file.")).to_be_visible()

    page.locator("#file").set_input_files(FILE)
    check_answer(page, url, "colour")
    expect(page.get_by_text("The browser cannot show this file.")).to_be_hidden()


def test_many_tasks_are_asked_in_one_request(page: Page, url: str) -> None:
    names = [*LABELS, *MANY]
    choose(page, *names)
    page.locator("#file").set_input_files(FILE)

    for task in names:
        check_answer(page, url, task)
    assert page.evaluate("window.sent.length") == 1
    assert last_images(page, "images") == [PNG]
    expect(page.get_by_role("status").last).to_have_text("10 answers")


def test_attention_is_laid_over_the_image(page: Page, url: str) -> None:
    attention = ask(url, "colour", attention="true")["attention"]
    choose(page, "colour", "parity")
    page.locator("#file").set_input_files(FILE)
    toggle = page.get_by_role("button", name="Attention of colour")
    toggle.click()

    expect(toggle).to_have_attribute("aria-pressed", "true")
    alpha = page.locator("#overlay").evaluate(
        "c => [c.height, c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    values = np.array(attention["values"])
    assert alpha[:2] == [attention["height"], attention["width"]] == list(values.shape)
    shown = np.array(alpha[2:]).reshape(*values.shape, 4)[..., 3]
    np.testing.assert_allclose(shown, 255 * 0.85 * values / values.max(), atol=1.5)
    page.get_by_role("button", name="Attention of parity").click()
    expect(toggle).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Attention of parity").click()
    expect(page.locator("#overlay")).to_be_hidden()


def test_attention_of_the_middle_is_laid_over_the_middle(page: Page, url: str) -> None:
    answer = ask(url, "colour", attention="true")
    answer["attention"]["crop_pct"] = 0.5  # as a task that crops would have it
    page.route("**/classify?*", lambda route: route.fulfill(json=answer))
    wide: Any = FILE | {"buffer": encoded(coloured("red", np.random.default_rng(0), side=120)[:60])}
    choose(page, "colour")
    page.locator("#file").set_input_files(wide)
    page.get_by_role("button", name="Attention of colour").click()

    image, overlay = (page.locator(name).bounding_box() for name in ("#image", "#overlay"))
    assert image is not None
    assert overlay is not None
    assert image["width"] == pytest.approx(2 * image["height"], rel=0.02)
    assert overlay["width"] == pytest.approx(image["width"] / 4, rel=0.02)
    assert overlay["height"] == pytest.approx(image["height"] / 2, rel=0.02)
    for start, length in (("x", "width"), ("y", "height")):
        middles = [box[start] + box[length] / 2 for box in (image, overlay)]  # type: ignore[literal-required]
        assert middles[0] == pytest.approx(middles[1], abs=1)


def test_page_can_be_used_by_keyboard_alone(page: Page, url: str) -> None:
    # from the start on: the key could be faster than a listener that is added with it
    page.on("filechooser", lambda chooser: chooser.set_files(FILE))
    expect(page.locator("#choices input").first).to_be_visible()
    stops = []
    for _ in range(20):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            "(e => [e.id || e.ariaLabel || e.textContent.trim(), getComputedStyle(e).outlineStyle, "
            "e.closest('label')?.matches(':has(:focus-visible)')])(document.activeElement)"
        )
        stops.append(stop[0])
        assert stop[1] != "none" or stop[2], stop  # where one is can be seen
        if stop[0] == "choose":
            page.keyboard.press("Enter")
        if stop[0] == "search":
            page.keyboard.type("task-")
            page.keyboard.press("ArrowDown")
            page.keyboard.press("ArrowDown")
            page.keyboard.press("Space")
            check_answer(page, url, MANY[1])
            page.keyboard.press("ArrowUp")
            page.keyboard.press("ArrowUp")
            expect(page.get_by_label("Find a task")).to_be_focused()
        if stop[0].startswith("Remove"):
            page.keyboard.press("Enter")
            break

    wanted = ["To the content", "Classify", "Tasks 10", "choose", "camera", "search"]
    assert stops[: len(wanted)] == wanted
    assert stops[-2:] == ["top-k", f"Remove {MANY[1]}"]
    expect(page.get_by_role("article")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(browser: Browser, url: str, tmp_path: Path, scheme: Any) -> None:
    size: Any = {"width": 360, "height": 740}
    with opened(browser, url, viewport=size, color_scheme=scheme, has_touch=True) as page:
        page.goto("/")
        for view in ("classify", "tasks"):
            page.goto(f"/#{view}")
            if view == "classify":
                choose(page, "colour", "parity")
                page.locator("#file").set_input_files(FILE)
                check_answer(page, url, "colour")
            else:
                page.locator("summary").first.click()
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            narrow = page.locator("button:visible, input:visible, summary:visible")
            for control in narrow.all():
                box = control.bounding_box()
                assert box is None or (box["x"] >= 0 and box["x"] + box["width"] <= 360)
