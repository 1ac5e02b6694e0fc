"""Pictures of the playground for the docs, taken in a real browser.

python -m bench.playground

Writes `docs/images/playground*.webp`.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser

from bench.browser import browser, chromium
from bench.server import DEMO_BUNDLE, ROOT, serving
from tests.samples.gateways import gateway
from tests.samples.playground import Playground

IMAGES = ROOT / "docs" / "images"
QUALITY = 85
DESK = {"width": 1280, "height": 820}
PHONE = {"width": 390, "height": 844}
PURPLE = "a large purple star in the center on a checkered green background"
STAR = "a large yellow star at the left on a blue background"


def main() -> None:
    """Start a server, a gateway and a browser, and take the pictures."""
    path = chromium()
    if path is None:
        raise SystemExit("no Chromium is installed (Debian: apt install chromium)")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(DEMO_BUNDLE, Path(folder) / "server.log") as server,
        gateway(server.grpc, Path(folder) / "gateway.log") as running,
        browser(path) as opened,
    ):
        edit(opened, running.url)
        preview(opened, running.url)
        phone(opened, running.url)


def edit(opened: Browser, url: str) -> None:
    """An edit, with the mask, and before and after."""
    playground = _open(opened, url, viewport=DESK)
    _edit_circle(playground)
    _save(playground, "playground")


def preview(opened: Browser, url: str) -> None:
    """Pictures under way, dark."""
    playground = _open(opened, url, viewport=DESK, color_scheme="dark")
    for seed, prompt in ((7, None), (3, STAR), (5, "a small green circle on a striped background")):
        playground.draw(*([prompt] if prompt else []), seed=seed, steps=20)
    playground.wait_for_pictures(3)
    playground.set("n", 3)
    playground.draw(PURPLE, seed=11, steps=60)
    playground.page.wait_for_function(
        "() => [...document.querySelectorAll('#queue progress')].some(bar => bar.value > 8)"
    )
    _save(playground, "playground-preview")


def phone(opened: Browser, url: str) -> None:
    """On a phone."""
    playground = _open(opened, url, viewport=PHONE, device_scale_factor=1.5)
    _edit_circle(playground)
    playground.page.evaluate("document.getElementById('tools').scrollIntoView()")
    _save(playground, "playground-phone")


def _open(opened: Browser, url: str, **options: Any) -> Playground:
    playground = Playground(opened.new_context(**options).new_page(), url)
    playground.open()
    return playground


def _edit_circle(playground: Playground) -> None:
    playground.draw(seed=7, steps=20)
    playground.wait_for_pictures(1)
    playground.page.click("#edit-this")
    playground.mark(tool="rectangle", share=(0.06, 0.18, 0.58, 0.78))
    playground.draw(STAR, seed=3, steps=20)
    playground.wait_for_pictures(2)
    playground.page.focus("#compare")
    for _ in range(22):
        playground.page.keyboard.press("ArrowLeft")
    playground.page.evaluate("document.activeElement.blur()")


def _save(playground: Playground, name: str) -> None:
    shot = Image.open(io.BytesIO(playground.page.screenshot())).convert("RGB")
    shot.save(IMAGES / f"{name}.webp", quality=QUALITY, method=6)


if __name__ == "__main__":
    main()
