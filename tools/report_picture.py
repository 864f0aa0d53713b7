"""Makes docs/report.webp: a question in the report of a run, and what matched in its first passage.

python run_vqa.py --dataset okvqa --controls none,oracle,wrong-image --output RUN
ravqa report RUN --questions 90000490, --matches 1 --output one.html
python tools/report_picture.py one.html 90000490

It needs playwright, and chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image

_TARGET = Path(__file__).parents[1] / "docs" / "report.webp"
_WIDTH = 1200
"""Of the window, in CSS pixels."""


def main() -> None:
    """Open the report at the question, and save it as far as the first passage."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("question")
    asked = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": _WIDTH, "height": 800}, device_scale_factor=1.25)
        page.goto(f"{asked.report.resolve().as_uri()}#q={asked.question}")
        page.wait_for_selector(".passage")
        card = page.locator(".card").first.bounding_box()
        last = page.locator(".passage").first.bounding_box()
        assert card is not None
        assert last is not None
        scrolled = page.evaluate("window.scrollY")
        clip = {
            "x": card["x"],
            "y": card["y"] + scrolled,
            "width": card["width"],
            "height": last["y"] + last["height"] - card["y"],
        }
        png = page.screenshot(full_page=True, clip=clip)
        browser.close()
    Image.open(io.BytesIO(png)).convert("RGB").save(_TARGET, quality=80, method=6)
    print(f"{_TARGET}: {_TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
