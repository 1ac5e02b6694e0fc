"""A probe: which cases it compares, and what it writes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tessera.contract import SPARSE_GRAPHS, EditQuality
from tessera.edits.measured import QUALITIES, Measured, policies_of
from tessera.edits.quality import BUILT_IN, Policy
from tessera.engines.bundle import Bundle
from tessera.errors import BundleError
from tessera.manifest import read_manifest
from tessera.types import Array
from tessera_build.cli import app
from tessera_build.probe import run
from tessera_build.probe.cases import GENERAL, SHARES, Case, cases
from tessera_build.probe.derive import MARGINS
from tessera_build.probe.editor import Edit, Editor
from tessera_build.probe.run import LEAST, MOST, compared, derived
from tessera_build.probe.tables import probe_tables
from tests.samples.bundles import INPAINTING, Small
from tests.samples.inpainting import by_diffusers
from tests.samples.references import References

RNG = np.random.default_rng(3)
PICTURE = RNG.integers(0, 256, (64, 64, 3), np.uint8)
NOISE = RNG.integers(-60, 61, PICTURE.shape)


class Made:
    """Edits whose error is large unless the margin is 4, and that take 10 seconds a case."""

    size = (64, 64)

    def __init__(self) -> None:
        self.now = 0.0
        self.recorded: list[str] = []

    def draw(self, prompt: str, seed: int) -> Array:
        self.now += 10
        return PICTURE

    def dense(self, edit: Edit) -> Array:
        return PICTURE

    def record(self, image: Array, prompt: str) -> tuple[str, ...]:
        self.recorded.append(prompt)
        return ("", prompt)

    def distance(self, prompt: str, other: str) -> float:
        return len(other) / 100

    def sparse(self, edit: Edit, texts: tuple[str, ...], policy: Policy) -> Array:
        scale = 0.0 if policy.margin >= 4 else 1.0 if texts == ("", "") else 0.1
        return (PICTURE + scale * NOISE).clip(0, 255).astype(np.uint8)

    def tokens(self, edit: Edit, margin: int) -> float:
        return margin / 10

    def forget(self) -> None:
        pass


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [(10 * LEAST * len(SHARES), LEAST), (299.0, 5), (10**6, MOST)],
    ids=["least", "as long as there is time", "most"],
)
def test_as_many_cases_as_there_is_time_for(seconds: float, rounds: int) -> None:
    editor = Made()
    found = compared(editor, cases(GENERAL), seconds=seconds, clock=lambda: editor.now)
    assert [each.share for each in found] == rounds * list(SHARES)


def test_too_little_time_is_said_soon() -> None:
    editor = Made()
    with pytest.raises(BundleError, match="20 edits take about 4 minutes here, --minutes allows 1"):
        compared(editor, cases(GENERAL), seconds=60, clock=lambda: editor.now)
    assert editor.now == 20


def values(measured: Measured, quality: EditQuality) -> list[float]:
    """What is expected of a quality, in all rows."""
    rows = [row for (q, _), row in measured.expected.items() if q == quality]
    return [value or 0.0 for row in rows for value in row]


def test_what_follows_is_written_and_read(tmp_path: Path) -> None:
    editor = Made()
    found = compared(editor, cases(GENERAL), seconds=0.0, clock=lambda: 0.0)
    apart = {"near": [0.1, 0.2, 0.3], "template": [1.0, 1.1, 1.25]}
    measured = derived("d" * 64, found, {"cases": len(found), "distances": apart})
    measured.write(tmp_path)
    policies, _ = policies_of(tmp_path, "d" * 64)
    for (quality, nearness), rows in BUILT_IN.reached.items():
        for limit, built_in in rows:
            for ratio in (limit, 0.9 * limit):
                taken, floor = policies.of(quality, nearness, ratio)[0], built_in[0]
                assert taken.margin == max(floor.margin, 4 if nearness == "empty" else 1)
                assert (taken.every, taken.fifths) == (floor.every, floor.fifths)
    for balanced, best in zip(*(values(measured, quality) for quality in QUALITIES), strict=True):
        assert best >= balanced
    assert editor.recorded[:3] == [GENERAL[0].edit, GENERAL[0].near, ""]
    row = measured.errors[-1]
    assert (row.nearness, row.share) == ("empty", SHARES[-1])
    assert row.by_margin["4"] == row.by_margin["6"] == 0
    assert row.by_margin["1"] > 0.05
    assert row.left_by_fifth == [1.0] * 5
    tables = list(probe_tables(measured))
    assert tables[0].title == "1 - SSIM by margin"
    assert list(tables[-1].columns[3].cells) == ["0.30", "1.25"]


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_with_all_tokens_a_sparse_edit_is_the_dense_one(
    name: str, small: Callable[[str], Small], tmp_path: Path
) -> None:
    """So both do the same but for their tokens; and a sparse one differs if few are computed."""
    editor = Editor(Bundle(small(name).bundle, threads=1), tmp_path)
    case = next(itertools.islice(cases(GENERAL), 2, None))
    image = editor.draw("a room", 0)
    edit = Edit(image, case.mask(*editor.size), "a cat", 1)
    dense, texts = editor.dense(edit), editor.record(image, "a dog")
    whole, narrow = (editor.sparse(edit, texts, Policy(margin)) for margin in (64, 0))
    assert np.abs(whole.astype(int) - dense).max() <= 2
    assert np.abs(narrow.astype(int) - dense).max() > 2
    assert (image == dense)[edit.mask == 0].all()
    shares = [editor.tokens(edit, margin) for margin in (0, *MARGINS, 64)]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert (editor.distance("a cat", "a cat"), editor.distance("a cat", "")) == (0, 1)


def test_a_dense_edit_of_an_inpainting_bundle_is_what_is_served(
    small: Callable[[str], Small], tmp_path: Path
) -> None:
    """As in diffusers all latents are drawn. A sparse edit keeps the template's, which no margin
    mends.
    """
    made = small(INPAINTING)
    bundle = Bundle(made.bundle, threads=1)
    editor, defaults = Editor(bundle, tmp_path), bundle.manifest.defaults
    image = editor.draw("a room", 0)
    mask = Case(0, 0.2, GENERAL[0]).mask(*editor.size)
    for masked, alike in ((mask, False), (np.full_like(mask, 255), True)):
        edit = Edit(image, masked, "a cat", 1)
        dense = editor.dense(edit).astype(int)
        expected = by_diffusers(
            References(made).inpainting(),
            image,
            masked,
            prompt=edit.prompt,
            seed=edit.seed,
            scheduler=defaults.scheduler,
            num_inference_steps=defaults.steps,
            guidance_scale=defaults.guidance,
        )
        assert np.abs(dense - expected).max() <= 2
        texts = editor.record(image, "a cat")
        whole = editor.sparse(edit, texts, Policy(64))
        assert (np.abs(whole - dense).max() <= 2) == alike


def test_the_command_writes_into_the_bundle(
    small: Callable[[str], Small], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for path in small("sd15").bundle.iterdir():
        (bundle / path.name).symlink_to(path)
    monkeypatch.setattr(run, "Editor", lambda *given: Made())
    result = CliRunner().invoke(app, ["probe", str(bundle)])
    assert result.exit_code == 0, result.output
    assert "1 - SSIM by margin" in result.output
    content = json.loads((bundle / "edits.json").read_text())
    assert content["how"]["cases"] == MOST * len(SHARES)
    assert policies_of(bundle, read_manifest(bundle).digest)[0].measured


def test_a_bundle_without_sparse_graphs_is_refused(
    small: Callable[[str], Small], tmp_path: Path
) -> None:
    bundle = Bundle(small("sd15").bundle)
    graphs = {k: v for k, v in bundle.manifest.graphs.items() if k not in SPARSE_GRAPHS}
    bundle.manifest = replace(bundle.manifest, graphs=graphs)
    with pytest.raises(BundleError, match="has no graphs of sparse edits"):
        Editor(bundle, tmp_path)
