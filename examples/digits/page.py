"""docs/page.png: the page of the quickstart's server, a digit on it and what one task looked at.

make serve                              # in another terminal
python examples/digits/page.py --url http://127.0.0.1:3000 --out docs/page.png
"""

import argparse
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

SIZE = {"width": 1200, "height": 900}
COLOURS = 128  # a small file, and none can tell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:3000", help="where the server is")
    parser.add_argument("--image", type=Path, default=Path("build/digits/samples/9.png"))
    parser.add_argument("--out", type=Path, default=Path("docs/page.png"))
    given = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport=SIZE, reduced_motion="reduce")  # type: ignore[arg-type]
        page.goto(given.url)
        page.wait_for_selector("#choices input:checked")
        for _ in range(3):  # the first answers of a server are slow
            page.locator("#file").set_input_files(given.image)
            page.locator(".card").first.wait_for()
            expect(page.locator("[aria-busy]")).to_have_count(0)
        page.get_by_role("button", name="Attention of digit").click()
        page.mouse.move(0, 0)
        page.screenshot(path=given.out, full_page=True)
        browser.close()
    picture = Image.open(given.out).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(given.out, optimize=True)
    print(f"{given.out}: {picture.width} x {picture.height}, {given.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
