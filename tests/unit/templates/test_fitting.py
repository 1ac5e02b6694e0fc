"""What an operator is told of recordings and budgets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.networks.sparse_unet import SparseUNet
from tessera.shared.settings import TemplateSettings
from tessera.templates.fitting import numbers_per_step, recorded_sites, what_does_not_fit
from tests.fakes.sparse import small_unet
from tests.samples.requests import MANIFEST

PROGRAM = SparseUNet(small_unet("sd15")).program
WHOLE = 2 * 20 * numbers_per_step(PROGRAM, recorded_sites(PROGRAM), (32, 32))
"""Bytes of the default size and steps in float16."""


def said(**budgets: int) -> str:
    return what_does_not_fit(PROGRAM, MANIFEST, TemplateSettings(Path("t"), **budgets))


def test_nothing_is_said_where_everything_fits() -> None:
    assert said(memory=WHOLE) == ""
    assert said(memory=10 * WHOLE, size=WHOLE) == ""


@pytest.mark.parametrize(
    ("budgets", "sentence"),
    [
        ({"memory": WHOLE - 1}, "are kept as int8/1"),
        ({"memory": WHOLE // 2, "size": WHOLE}, "are kept as float16/1"),
        ({"memory": WHOLE // 2, "size": WHOLE}, ": 0 of them fit into memory"),
        ({"memory": 5 * WHOLE, "size": WHOLE // 2}, ": 10 of them fit into memory"),
        ({"memory": 10}, "do not fit 1e-08 GB: edits are dense"),
    ],
)
def test_what_does_not_fit_is_said(budgets: dict[str, int], sentence: str) -> None:
    assert said(**budgets).startswith("recordings of 20 steps at 128 x 128 pixels ")
    assert sentence in said(**budgets)


def test_a_recording_is_no_larger_than_what_memory_holds() -> None:
    assert TemplateSettings(memory=4 * 10**9).largest == 4 * 10**9
    assert TemplateSettings(memory=64 * 10**9).largest == 10**10
    assert TemplateSettings(memory=4 * 10**9, size=6 * 10**9).largest == 6 * 10**9
