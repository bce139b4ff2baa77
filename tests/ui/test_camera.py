"""A picture from the camera, in a real browser that has one that shows a test pattern."""

import io
import time

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from toys_browser import FILE, NEEDS_CHROMIUM, card, check_answer, choose, last_images, opened

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]


# the browser's camera, but window.grant() has to be called first
SLOW_PERMISSION = """
  const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  const granted = new Promise((resolve) => { window.grant = resolve; });
  window.streams = [];
  navigator.mediaDevices.getUserMedia = async (wanted) => {
    await granted;
    window.streams.push(await open(wanted));
    return window.streams.at(-1);
  };
"""
TRACKS = "streams.map((stream) => stream.getTracks().map((track) => track.readyState))"


@pytest.fixture
def page(page: Page) -> Page:
    page.goto("/")
    return page


def test_picture_is_taken_with_the_camera(page: Page, url: str) -> None:
    choose(page, "colour")
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_role("button", name="Take the picture").click()

    expect(card(page, "colour").get_by_role("listitem")).to_have_count(3)
    (picture,) = last_images(page, "image")
    assert min(Image.open(io.BytesIO(picture)).size) >= 240
    check_answer(page, url, "colour", picture)
    assert page.evaluate("document.getElementById('video').srcObject") is None


def test_camera_can_be_left(page: Page) -> None:
    page.get_by_role("button", name="Use the camera").click()
    expect(page.get_by_role("button", name="Take the picture")).to_be_enabled()

    page.keyboard.press("Escape")

    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Use the camera")).to_be_focused()


def test_camera_that_was_left_before_it_opened_is_off(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        page.add_init_script(SLOW_PERMISSION)
        page.goto("/")
        page.get_by_role("button", name="Use the camera").click()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Use the camera").click()

        page.evaluate("grant()")

        expect(page.get_by_role("button", name="Take the picture")).to_be_enabled()
        page.wait_for_function("streams.length === 2")
        assert sorted(page.evaluate(TRACKS)) == [["ended"], ["live"]]
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("dialog")).to_have_count(0)
        end = time.monotonic() + 10
        while page.evaluate(TRACKS) != [["ended"], ["ended"]]:  # told that it was closed
            assert time.monotonic() < end
            page.wait_for_timeout(20)


def test_camera_that_is_refused_is_explained(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        page.add_init_script(
            "navigator.mediaDevices.getUserMedia = async () => { throw new Error('no permission') }"
        )
        page.goto("/")
        page.get_by_role("button", name="Use the camera").click()

        expect(page.get_by_role("alert")).to_have_text(
            "The camera cannot be used: no permission. Choose a file instead."
        )
        page.get_by_role("button", name="Cancel").click()


def test_page_that_may_not_use_the_camera_asks_for_a_picture(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        page.add_init_script("Object.defineProperty(navigator, 'mediaDevices', {value: undefined})")
        page.goto("/")
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Use the camera").click()
        choose(page, "colour")
        chooser.value.set_files(FILE)

        check_answer(page, url, "colour")
