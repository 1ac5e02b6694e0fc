"""Figures are drawn again from reports."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image, ImageColor

from bench import figures, report
from bench.figures import DRAWINGS, Drawing, digest_of, drawn, redraw
from bench.plots import COLOURS, description_of, of_few_colours, save, write

every_drawing = pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda d: d.file.stem)


@every_drawing
def test_every_figure_can_be_drawn_from_its_report(drawing: Drawing, tmp_path: Path) -> None:
    file = tmp_path / "figure.webp"
    results = figures.results_of(drawing.report)
    file.write_bytes(drawn(drawing, results))
    assert digest_of(file) == figures.digest(results)
    with Image.open(file) as new, Image.open(drawing.file) as old:
        assert new.width == old.width


@every_drawing
def test_a_figure_that_names_its_results_is_of_the_report(drawing: Drawing) -> None:
    """`python -m bench tables` draws it. Figures of before there were digests name none."""
    results = figures.results_of(drawing.report)
    assert digest_of(drawing.file) in (None, figures.digest(results))


def test_only_changed_results_are_drawn(tmp_path: Path) -> None:
    drawings: list[Any] = []

    def draw(results: Any, file: Path) -> None:
        drawings.append(results)
        Image.new("RGB", (20, 20), (results[0], 0, 0)).save(file, lossless=True)

    file = tmp_path / "figure.webp"
    with report.elsewhere(tmp_path):
        assert redraw([Drawing("some", file, draw)]) == []
        report.write("some", {}, [9], machine={"cpu": "one"})
        assert redraw([Drawing("some", file, draw)]) == ["drawn: figure.webp"]
        assert redraw([Drawing("some", file, draw)]) == []
        report.write("some", {}, [7], machine={"cpu": "one"})
        assert redraw([Drawing("some", file, draw)]) == ["drawn: figure.webp"]
    assert drawings == [[9], [7]]
    with Image.open(file) as picture:
        assert picture.convert("RGB").getpixel((0, 0)) == (7, 0, 0)


def test_few_colours_keep_those_of_lines() -> None:
    """A line's colour stays, however many shades of others there are beside it, and how short it
    is. So does the ground.
    """
    picture = Image.new("RGB", (256, 300), "white")
    picture.paste(Image.linear_gradient("L").convert("RGB"))
    lines = [ImageColor.getrgb(colour) for colour in ("#1f77b4", "#17becf", "#9467bd")]
    for number, colour in enumerate(lines):
        picture.putpixel((5, 20 * number), colour)
    few = of_few_colours(picture)
    found = few.convert("RGB")
    assert len(few.getcolors() or []) == COLOURS
    assert [found.getpixel((5, 20 * number)) for number in range(3)] == lines
    assert found.getpixel((5, 299)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["plot.png", "plot.webp"])
def test_a_plot_is_written_without_loss(name: str, tmp_path: Path) -> None:
    few = of_few_colours(Image.effect_noise((64, 48), 60).convert("RGB"))
    write(few, tmp_path / name, says="of those results")
    with Image.open(tmp_path / name) as picture:
        assert picture.convert("RGB").tobytes() == few.convert("RGB").tobytes()
    assert description_of(tmp_path / name) == "of those results"
    write(few, tmp_path / name)
    assert description_of(tmp_path / name) is None


def test_a_figure_of_matplotlib_has_few_colours(tmp_path: Path) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    axes.imshow(np.arange(256).reshape(16, 16))
    save(figure, tmp_path / "plot.webp", dpi=50)
    plt.close(figure)
    with Image.open(tmp_path / "plot.webp") as picture:
        assert picture.width == 320
        assert len(picture.convert("RGB").getcolors() or []) <= COLOURS


def test_a_figure_that_would_grow_stays(tmp_path: Path) -> None:
    def draw(results: Any, file: Path) -> None:
        Image.effect_noise((200, 200), 50).convert("RGB").save(file)

    file = tmp_path / "figure.webp"
    Image.new("RGB", (2, 2)).save(file)
    before = file.read_bytes()
    with report.elsewhere(tmp_path):
        report.write("some", {}, [7], machine={"cpu": "one"})
        (said,) = redraw([Drawing("some", file, draw)])
    assert re.fullmatch(rf"not drawn: figure.webp would grow from {len(before)} to \d+ bytes", said)
    assert file.read_bytes() == before
