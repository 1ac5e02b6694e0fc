"""The playground in a real browser, in front of a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser

from bench.browser import browser, chromium
from bench.server import Server
from tessera_client import Client
from tessera_gateway.keys import make_key
from tests.samples.gateways import RunningGateway, gateway
from tests.samples.jobs import LONG_TICKS, in_company, wait_for_step
from tests.samples.playground import PROMPT, Playground
from tests.samples.waiting import comes

SIZES = {"desk": {"width": 1280, "height": 860}, "phone": {"width": 390, "height": 844}}
SLOW = {"width": 256, "height": 256, "steps": 60, "scheduler": "heun"}
"""As long as the page lets a picture be; `heun` has two ticks in a step."""


@pytest.fixture(scope="module")
def running(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with gateway(server.grpc, tmp_path_factory.mktemp("page") / "log") as started:
        yield started


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    with browser(path) as started:
        yield started


@pytest.fixture
def playground(opened: Browser, running: RunningGateway) -> Iterator[Playground]:
    """Opened; its console has to be silent, and it may ask nobody but its gateway."""
    context = opened.new_context(viewport=SIZES["desk"], accept_downloads=True)  # type: ignore[arg-type]
    made = Playground(context.new_page(), running.url)
    made.open()
    yield made
    context.close()
    assert made.errors == []
    foreign = [u for u in made.requests if not u.startswith((running.url, "blob:", "data:"))]
    assert foreign == []


def test_a_picture_is_drawn_and_can_be_taken_home(
    playground: Playground, http_client: Client
) -> None:
    page = playground.page
    with in_company(http_client, 3, **LONG_TICKS):  # until the preview has been seen
        playground.draw(seed=7, steps=60, scheduler="heun")
        assert playground.wait_for_preview().startswith("Preview after step")
        page.wait_for_selector("#queue progress")
    playground.wait_for_pictures(1)
    page.wait_for_selector("#download")
    with playground.download() as saved:
        assert "Seed: 7" in saved.info["parameters"]
        assert json.loads(saved.info["tessera"])["info"]["steps"] == 60
    page.click("#random")
    assert page.input_value("#seed") == ""
    page.click("#use-seed")
    assert page.input_value("#seed") == "7"


def test_a_picture_is_edited_inside_its_mask(playground: Playground, http_client: Client) -> None:
    page = playground.page
    playground.draw(seed=7, steps=20)
    playground.wait_for_pictures(1)
    page.click("#edit-this")
    playground.mark(tool="rectangle", share=(0.0, 0.25, 0.5, 0.75))
    assert playground.marked() == pytest.approx(25, abs=1.5)
    playground.mark(tool="brush", share=(0.8, 0.8, 0.9, 0.9))
    assert playground.marked() > 27
    page.click("#undo")
    assert playground.marked() == pytest.approx(25, abs=1.5)
    with in_company(http_client, 3, **LONG_TICKS):
        playground.draw(
            "a large yellow star at the left on a blue background", steps=60, scheduler="heun"
        )
        playground.wait_for_preview()
    playground.wait_for_pictures(2)
    page.wait_for_selector("#compare")
    before, after = (
        playground.pixels(selector).astype(int)
        for selector in (".compare > img", ".compare .after img")
    )
    np.testing.assert_array_equal(before[:, 66:], after[:, 66:])
    assert np.abs(before - after)[32:96, :64].max() > 50
    edge = page.locator(".compare .edge")
    page.focus("#compare")
    page.keyboard.press("Home")
    assert edge.evaluate("edge => edge.style.left") == "0%"


def test_a_picture_too_large_to_draw_is_edited_around_its_mask(
    playground: Playground, tmp_path: Path
) -> None:
    page, photo = playground.page, tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (310, 401, 3), np.uint8)
    Image.fromarray(pixels).save(photo)
    page.check('input[name="task"][value="edit"]', force=True)
    page.set_input_files("#file", photo)
    page.wait_for_function("() => document.getElementById('padding').value === '32'")
    playground.set("padding", "")
    playground.mark(tool="rectangle", share=(0.2, 0.2, 0.4, 0.4))
    playground.draw(steps=3)
    page.wait_for_selector("#problem:has-text('pixels around the mask')")  # the mask is read before
    playground.draw(steps=3, padding=16, edit_quality="best", mode="sparse")
    playground.wait_for_pictures(1)
    with playground.download() as saved:
        drawn, info = np.asarray(saved), json.loads(saved.info["tessera"])["info"]
    assert info["edit_quality"] == "best"
    rows, columns = np.nonzero((drawn != pixels).any(-1))
    assert 60 <= rows.min() < rows.max() <= 126
    assert 78 <= columns.min() < columns.max() <= 162


def test_a_cancelled_job_ends_on_the_server(playground: Playground, http_client: Client) -> None:
    page = playground.page
    with in_company(http_client, 3, **LONG_TICKS):
        playground.draw(PROMPT, **SLOW)
        job = page.get_attribute("#queue li", "data-job")
        assert job
        wait_for_step(http_client, job, 2)
        page.click("#queue .cancel")
        comes(lambda: http_client.status(job).ended)
    status = http_client.status(job)
    assert status.phase == "cancelled"
    assert status.step < 60
    page.wait_for_selector("#queue-part", state="hidden")
    assert page.is_hidden("#problem")


def test_a_reload_keeps_settings_and_pictures(playground: Playground, http_client: Client) -> None:
    page = playground.page
    playground.draw(seed=7, steps=5)
    playground.wait_for_pictures(1)
    with in_company(http_client, 3, **LONG_TICKS):
        playground.draw("a small green circle", seed=8, **SLOW)
        job = page.get_attribute("#queue li", "data-job")
        assert job
        wait_for_step(http_client, job, 1)
        playground.open()
        comes(lambda: http_client.status(job).ended)
    assert page.input_value("#prompt") == "a small green circle"
    assert page.input_value("#width") == "256"
    assert page.locator("#history button").count() == 1
    assert http_client.status(job).phase == "cancelled", "nobody waits for it any more"
    page.click("#use-settings")
    assert (page.input_value("#prompt"), page.input_value("#seed")) == (PROMPT, "7")


def test_several_pictures_wait_in_a_queue(playground: Playground, http_client: Client) -> None:
    """All slots are taken, so that the first two do not end before the others are looked at."""
    page = playground.page
    page.click("#sampling summary")
    with in_company(http_client, 8):
        playground.draw(seed=1, n=4, steps=12)
        page.wait_for_function("() => document.querySelectorAll('#queue li').length === 4")
        assert page.locator("#queue li", has_text="waits for the jobs above").count() == 2
    playground.wait_for_pictures(4)
    seeds = [page.locator("#history button").nth(i).get_attribute("aria-label") for i in range(4)]
    assert sorted(s.rpartition(" ")[2] for s in seeds if s) == ["1", "2", "3", "4"]


def test_loras_and_controlnets_are_used(playground: Playground, tmp_path: Path) -> None:
    page = playground.page
    outline = tmp_path / "outline.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(outline)
    page.click("#lora-part summary")
    page.get_by_label("night").fill("0.8")
    page.click("#control-part summary")
    page.click("#add-control")
    playground.draw(seed=3, steps=4)
    page.wait_for_selector("#problem:has-text('ControlNet edges has no picture')")
    page.get_by_label("Picture of ControlNet 1").set_input_files(outline)
    page.get_by_label("Preparation").select_option("canny")
    page.click("#draw")
    playground.wait_for_pictures(1)
    with playground.download() as saved:
        info = json.loads(saved.info["tessera"])["info"]
    assert [(lora["name"], lora["weight"]) for lora in info["loras"]] == [("night", 0.8)]
    assert [c["name"] for c in info["controls"]] == ["edges"]


def test_the_keyboard_is_enough(playground: Playground) -> None:
    page = playground.page
    page.focus("#prompt")
    page.keyboard.type("a small green circle")
    playground.set("steps", 3)
    page.keyboard.press("Control+Enter")
    playground.wait_for_pictures(1)
    page.focus("#edit-this")
    page.keyboard.press("Enter")
    page.wait_for_selector("#mask-part:not([hidden])")
    page.focus("#mask")
    for key in ("ArrowLeft", "ArrowUp", " "):
        page.keyboard.press(key)
    dot = playground.marked()
    assert dot > 0
    page.keyboard.press("Control+z")
    assert playground.marked() == 0
    page.click('[data-tool="rectangle"]')
    page.focus("#mask")
    for key in (" ", "Shift+ArrowRight", "Shift+ArrowDown", " "):
        page.keyboard.press(key)
    assert playground.marked() == pytest.approx(100 * 32 * 32 / 128**2, abs=1)
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    playground.wait_for_pictures(2)


def test_a_problem_is_told(playground: Playground) -> None:
    page = playground.page
    page.check('input[name="task"][value="edit"]', force=True)
    playground.draw()
    page.wait_for_selector("#problem:text-is('Choose a picture to edit first')")
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no"})
    page.wait_for_function(
        "() => document.getElementById('problem').textContent.includes('no picture')"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_keeps_people_out(
    opened: Browser, running: RunningGateway, size: str, scheme: Any
) -> None:
    viewport: Any = SIZES[size]
    context = opened.new_context(viewport=viewport, color_scheme=scheme)
    playground = Playground(context.new_page(), running.url)
    playground.open()
    page = playground.page
    for part in ("#sampling", "#lora-part", "#control-part"):
        page.click(f"{part} summary")
    page.click("#add-control")
    playground.draw(seed=7, steps=3)
    page.click("#control-part .row .small")
    page.click("#draw")
    playground.wait_for_pictures(1)
    page.click("#edit-this")
    playground.mark(tool="brush", share=(0.2, 0.2, 0.6, 0.6))
    playground.draw(steps=3)
    playground.wait_for_pictures(2)
    page.click("#add-control")
    found = Axe().run(page).response["violations"]
    assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    context.close()
    assert playground.errors == []


def test_a_server_with_keys_asks_for_one(opened: Browser, server: Server, tmp_path: Path) -> None:
    key, line = make_key("page")
    keys = tmp_path / "keys"
    keys.write_text(line)
    with gateway(server.grpc, tmp_path / "log", f"--keys={keys}") as locked:
        context = opened.new_context()
        playground = Playground(context.new_page(), locked.url)
        playground.page.goto(locked.url)
        playground.page.fill("#key", "wrong")
        playground.page.keyboard.press("Enter")
        playground.page.fill("#key", key)
        playground.page.keyboard.press("Enter")
        playground.page.wait_for_selector("body[data-ready]")
        playground.draw(seed=1, steps=2)
        playground.wait_for_pictures(1)
        context.close()
    assert {e for e in playground.errors if "401" not in e} == set()
