"""A real browser on the page of a real server."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright
from toys import coloured, encoded, export_once, random_bundle

from lspt_serve.bundle import save_bundle
from lspt_serve.models import Backbone

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium in PATH: apt-get install chromium"
)
LABELS = {"colour": ["<b>blue</b>", "green & <i>", "r" * 90], "parity": ["even", "odd"]}
MANY = [f"task-{number}" for number in range(8)]  # so that there is something to search
BROKEN = "broken"
PNG = encoded(coloured("red", np.random.default_rng(0), side=120))
FILE: Any = {"name": "red.png", "mimeType": "image/png", "buffer": PNG}
# what is sent, for playwright does not see the files in it
KEEP_SENT = """
  const send = window.fetch;
  window.sent = [];
  window.fetch = (path, options) => {
    if (options.body) window.sent.push({ path, body: options.body });
    return send(path, options);
  };
"""
LAST_IMAGES = """async (field) => {
  const files = window.sent.at(-1).body.getAll(field);
  return Promise.all(files.map(async (file) => [...new Uint8Array(await file.arrayBuffer())]));
}"""


def create_site(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph and bundles: colour, parity and MANY, and one that is refused."""
    folder = tmp_path_factory.mktemp("page")
    for seed, name in enumerate([*LABELS, *MANY]):
        labels = LABELS.get(name, ["no", "yes"])
        bundle = random_bundle(backbone, name=name, labels=labels, seed=seed, num_prompts=2)
        save_bundle(bundle, folder / "bundles" / name)
    (folder / "bundles" / BROKEN).mkdir()
    (folder / "bundles" / BROKEN / "bundle.json").write_text("{}")
    (folder / "graph").symlink_to(export_once(backbone, tmp_path_factory))
    return folder


@contextmanager
def started_browser() -> Iterator[Browser]:
    """Chromium without a window, with a camera that shows a test pattern."""
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=camera)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """A page that asks no other site for anything and has nothing to complain about."""
    complaints: list[tuple[str, str]] = []
    asked: set[str] = set()
    with browser.new_context(base_url=url, **context) as tab:
        tab.set_default_timeout(10_000)
        page = tab.new_page()
        page.on("request", lambda request: asked.add(request.url))
        page.on("pageerror", lambda error: complaints.append(("error", str(error))))
        page.on("console", lambda message: complaints.append((message.type, message.text)))
        page.add_init_script(KEEP_SENT)
        yield page
    assert asked, "the page asked for nothing"
    elsewhere = [at for at in asked if not at.startswith((f"{url}/", f"blob:{url}/"))]
    assert not elsewhere, elsewhere
    # the browser itself reports answers that refuse; what is only "debug" is that it was slow
    complaints = [
        (kind, text)
        for kind, text in complaints
        if kind in ("error", "warning") and not text.startswith("Failed to load resource")
    ]
    assert not complaints, complaints


def last_images(page: Page, field: str) -> list[bytes]:
    """The image files in the last request that had a body."""
    return [bytes(image) for image in page.evaluate(LAST_IMAGES, field)]


def mock_tasks(page: Page, *tasks: dict[str, Any], refused: dict[str, str] | None = None) -> None:
    """In place of the server's GET /tasks."""
    listed = {"generation": 1, "tasks": tasks, "refused": refused or {}}
    page.route("**/tasks", lambda route: route.fulfill(json=listed))


def task(name: str, **more: Any) -> dict[str, Any]:
    plain = {"version": 1, "labels": ["no", "yes"], "method": "lspt", "metrics": None}
    return {"name": name, **plain, "license": None, "aliases": {}, "resident": False, **more}


@contextmanager
def held(page: Page, path: str) -> Iterator[None]:
    """Requests to `path` come to the server only after this."""
    page.route(path, lambda route: None)
    yield
    page.unroute(path)  # lets through what waits


def wants_key(route: Route) -> None:
    """A server that has keys, mocked: all but the right one is refused."""
    if route.request.headers.get("authorization") == "Bearer right":
        route.continue_()
        return
    error = {"code": "unauthorised", "message": "wanted a key", "request_id": "1", "item": None}
    route.fulfill(status=401, json={"error": error})


def choose(page: Page, *tasks: str) -> None:
    for task in tasks:
        page.get_by_label("Find a task").fill(task)
        page.get_by_role("checkbox", name=re.compile(rf"^{task}\b")).check()
    page.get_by_label("Find a task").fill("")


def card(page: Page, task: str) -> Locator:
    return page.get_by_role("article", name=task, exact=True)


def ask(url: str, task: str, image: bytes = PNG, **fields: Any) -> Any:
    """What the API answers to a plain request."""
    fields = {"task": task, **fields}
    return httpx.post(f"{url}/classify", files={"image": image}, data=fields, timeout=20).json()


def check_answer(page: Page, url: str, task: str, image: bytes = PNG, **fields: Any) -> None:
    """The card of a task shows what the API answers."""
    predictions = ask(url, task, image, **fields)["predictions"]
    bars = card(page, task).get_by_role("listitem")
    expect(bars).to_have_count(len(predictions))
    for bar, prediction in zip(bars.all(), predictions, strict=True):
        label, score = bar.locator(".label"), f"{prediction['score']:.1%}"
        assert label.text_content() == prediction["label"]
        assert bar.locator(".score").text_content() == score
        width = bar.locator(".track span").evaluate("bar => parseFloat(bar.style.inlineSize) / 100")
        assert width == pytest.approx(prediction["score"], abs=5e-4)
