"""Makes docs/demo.webp: the demo with one of its examples, and what matched.

ravqa demo --port 7860
python tools/demo_picture.py http://127.0.0.1:7860/ 1

It needs playwright, and chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image

_TARGET = Path(__file__).parents[1] / "docs" / "demo.webp"
_SIZE = {"width": 1180, "height": 1240}
"""Of the window, in CSS pixels."""


def main() -> None:
    """Ask an example, open what matched, and save what is seen."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("example", type=int)
    asked = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport=_SIZE, device_scale_factor=1.25)
        page.set_default_timeout(600_000)
        page.goto(asked.address)
        page.locator(f"#rv-example-{asked.example}").click()
        page.locator(".rv-match summary").click()
        page.frame_locator(".rv-match iframe").locator(".heat .w").first.wait_for()
        page.wait_for_timeout(3000)  # the frame takes the height of its content
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(1000)
        png = page.screenshot()
        browser.close()
    Image.open(io.BytesIO(png)).convert("RGB").save(_TARGET, quality=80, method=6)
    print(f"{_TARGET}: {_TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
