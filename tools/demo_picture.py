"""Makes docs/demo.webp: the demo's page after a question about a photo of the bundled sample.

make demo
python tools/demo_picture.py http://127.0.0.1:7860/

It needs playwright, and chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image

_TARGET = Path(__file__).parents[1] / "docs" / "demo.webp"
_QUESTION = "By whom was this building put up?"
_SIZE = {"width": 1240, "height": 1180}
"""Of the window, in CSS pixels."""


def main() -> None:
    """Ask the example's question, open what matched, and save what is seen."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    asked = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport=_SIZE)
        page.goto(asked.address)
        page.get_by_role("button", name=_QUESTION).click()
        page.locator(".rv-match summary").click(timeout=120_000)
        page.frame_locator(".rv-match iframe").locator(".heat").first.wait_for()
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(1000)
        png = page.screenshot()
        browser.close()
    Image.open(io.BytesIO(png)).convert("RGB").save(_TARGET, quality=80, method=6)
    print(f"{_TARGET}: {_TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
