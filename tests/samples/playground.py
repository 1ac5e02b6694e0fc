"""The playground in a browser, as a person would use it."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page

from tessera.types import Array

PROMPT = "a large red circle at the left on a blue background"
LATER_MS = 180_000


class Playground:
    """The page of a gateway, opened.

    Attributes:
        page: of the browser.
        errors: what the browser's console complained about.
        requests: addresses that the page asked for.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(LATER_MS)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def open(self) -> None:
        """Open the page, or open it again."""
        self.page.goto(self.url)
        self.page.wait_for_selector("body[data-ready]")

    def set(self, name: str, value: object) -> None:
        """Set a field, slider or choice by its id."""
        self.page.evaluate(
            """([id, value]) => {
                const field = document.getElementById(id);
                field.value = value;
                field.dispatchEvent(new Event("input", { bubbles: true }));
            }""",
            [name, str(value)],
        )

    def draw(self, prompt: str = PROMPT, **values: object) -> None:
        """Ask for a picture."""
        self.page.fill("#prompt", prompt)
        for name, value in values.items():
            self.set(name, value)
        self.page.click("#draw")

    def wait_for_pictures(self, count: int) -> None:
        """Until the history has so many."""
        self.page.wait_for_function(
            "count => document.querySelectorAll('#history button').length === count", arg=count
        )

    def wait_for_preview(self) -> str:
        """Its words, once there is one."""
        self.page.wait_for_selector(".shown.preview img")
        return self.page.inner_text("#about")

    def mark(self, *, tool: str, share: tuple[float, float, float, float]) -> None:
        """Draw on the mask from one point to another, given as shares of the picture's sides."""
        self.page.click(f'[data-tool="{tool}"]')
        mask = self.page.locator("#mask")
        mask.scroll_into_view_if_needed()
        box = mask.bounding_box()
        assert box is not None
        x0, y0, x1, y1 = share
        mouse = self.page.mouse
        mouse.move(box["x"] + x0 * box["width"], box["y"] + y0 * box["height"])
        mouse.down()
        mouse.move(box["x"] + x1 * box["width"], box["y"] + y1 * box["height"], steps=5)
        mouse.up()

    def marked(self) -> float:
        """Percentage of the picture that is marked."""
        words = self.page.inner_text("#mask-hint")
        return float(words.partition(" %")[0]) if "%" in words else 0.0

    def pixels(self, selector: str) -> Array:
        """Pixels (h, w, 3), uint8, of a picture that is shown."""
        encoded: str = self.page.evaluate(
            """async (selector) => {
                const image = document.querySelector(selector);
                await image.decode();
                const canvas = document.createElement("canvas");
                [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
                canvas.getContext("2d").drawImage(image, 0, 0);
                return canvas.toDataURL("image/png").split(",")[1];
            }""",
            selector,
        )
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
            return np.asarray(picture.convert("RGB"))

    def download(self) -> Image.Image:
        """The picture that is shown, as its reader gets it."""
        with self.page.expect_download() as download:
            self.page.click("#download")
        return Image.open(download.value.path())
