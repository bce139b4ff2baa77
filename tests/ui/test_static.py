"""What the page is made of, as it is sent; no browser."""

import hashlib
import re
from importlib.resources import files

import pytest
from toys_api import Api

from lspt_serve.api import create_app

STATIC = {
    file.name: file.read_text("utf-8")
    for file in files("lspt_serve.ui").joinpath("static").iterdir()
}
PATHS = ["/" if name == "index.html" else f"/ui/{name}" for name in STATIC]
CSS = STATIC["page.css"]


@pytest.fixture(scope="module")
def api() -> Api:
    return Api(None)  # type: ignore[arg-type]  # the page needs no classifier


@pytest.mark.parametrize("path", PATHS)
def test_file_is_sent_as_it_is_and_guarded(api: Api, path: str) -> None:
    answer = api.request("GET", path)

    content = STATIC[path.removeprefix("/ui/").strip("/") or "index.html"]
    assert (answer.status_code, answer.text) == (200, content)
    assert answer.headers["etag"] == f'"{hashlib.sha256(content.encode()).hexdigest()[:32]}"'
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; img-src 'self' blob: data:;")
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/ui/page.css", "text/css; charset=utf-8"),
        ("/ui/main.js", "text/javascript; charset=utf-8"),
        ("/ui/favicon.svg", "image/svg+xml"),
    ],
)
def test_file_says_what_it_is(api: Api, path: str, media_type: str) -> None:
    assert api.request("GET", path).headers["content-type"] == media_type


@pytest.mark.parametrize("known", ["{}", "W/{}", '"other", {}'])
def test_file_that_is_known_is_not_sent_again(api: Api, known: str) -> None:
    etag = api.request("GET", "/").headers["etag"]

    again = api.request("GET", "/", headers={"If-None-Match": known.format(etag)})

    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert api.request("GET", "/", headers={"If-None-Match": '"other"'}).status_code == 200


def test_head_has_no_body(api: Api) -> None:
    answer = api.request("HEAD", "/")

    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["/ui", "/ui/", "/ui/nothing.js", "/ui/../app.py", "/ui/%2e%2e"])
def test_nothing_else_is_sent(api: Api, path: str) -> None:
    assert api.request("GET", path).status_code == 404


def test_page_is_not_part_of_the_api() -> None:
    app = create_app()

    assert not [path for path in app.openapi()["paths"] if path == "/" or path.startswith("/ui")]


def test_page_has_no_script_and_no_style_of_its_own() -> None:
    page = STATIC["index.html"]

    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)


@pytest.mark.parametrize("name", STATIC)
def test_file_names_no_other_site(name: str) -> None:
    text = STATIC[name].replace('xmlns="http://www.w3.org/2000/svg"', "")

    assert not re.search(r"https?:|\"//|url\(", text)


def test_files_name_only_files_that_there_are() -> None:
    named = set(re.findall(r"\"ui/([\w.]+)\"", STATIC["index.html"]))
    for text in STATIC.values():
        named |= set(re.findall(r"from \"\./([\w.]+)\"", text))

    assert named == STATIC.keys() - {"index.html"}


def palettes() -> dict[str, dict[str, str]]:
    light, dark = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", light))
    return {"light": colours, "dark": colours | dict(re.findall(r"--([\w-]+): (#\w{6});", dark))}


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("front", "back", "least"),
    [
        *((front, back, 4.5) for front in ("ink", "quiet") for back in ("paper", "raised", "tint")),
        *((front, back, 4.5) for front in ("accent", "problem") for back in ("paper", "raised")),
        ("on-accent", "accent", 4.5),
        ("edge", "paper", 3),
        ("edge", "raised", 3),
    ],
)
def test_what_is_to_be_read_stands_out(scheme: str, front: str, back: str, least: float) -> None:
    palette = palettes()[scheme]
    dark, bright = sorted(luminance(palette[name]) for name in (front, back))

    assert (bright + 0.05) / (dark + 0.05) >= least
