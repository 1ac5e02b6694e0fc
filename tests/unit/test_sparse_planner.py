"""The planner against brute force, and its cost model against networks that are run."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tessera.manifest import Latents
from tessera.sparse.network import SparseUNet
from tessera.sparse.planner import (
    Costs,
    Kind,
    Line,
    Step,
    numbers_needed,
    optimum,
    plan_steps,
    seconds,
    step_of,
    work,
)
from tessera.sparse.program import Program
from tessera.sparse.tables import make_tables
from tessera_build.examples import example_inputs
from tests.fakes.sparse import NAMES, batch_of, mask_of, small_unet

TIMES = st.floats(0, 10)
STEPS = st.lists(st.builds(Step, TIMES, TIMES, TIMES), min_size=1, max_size=8)
KINDS: tuple[Kind, ...] = ("dense", "sparse")


@settings(max_examples=200, deadline=None)
@given(steps=STEPS)
def test_no_choice_ends_sooner_than_the_optimum(steps: list[Step]) -> None:
    best = min(seconds(steps, kinds) for kinds in product(KINDS, repeat=len(steps)))
    plan = optimum(steps)
    assert plan.seconds == pytest.approx(best)
    assert seconds(steps, plan.kinds) == pytest.approx(plan.seconds)


def test_the_greedy_rule_is_beaten() -> None:
    """The example of DESIGN.md: taking the cache whenever its rows are there gives 7."""
    steps = [Step(load=2, sparse=1, dense=3)] * 3
    assert optimum(steps).seconds == 5
    assert seconds(steps, ("sparse", "sparse", "sparse")) == 7


@given(steps=STEPS)
def test_auto_is_never_worse_than_either_kind_alone(steps: list[Step]) -> None:
    auto = plan_steps(steps).seconds
    assert auto <= min(plan_steps(steps, "dense").seconds, plan_steps(steps, "sparse").seconds)


@pytest.mark.parametrize("mode", KINDS)
def test_a_mode_overrides_the_costs(mode: Kind) -> None:
    steps = [Step(load=1, sparse=1, dense=1)] * 4
    assert plan_steps(steps, mode).kinds == (mode,) * 4


@pytest.mark.parametrize("name", NAMES)
def test_work_is_what_torch_counts(name: str) -> None:
    unet = small_unet(name)
    program, network = Program(unet), SparseUNet(unet).eval()
    inputs = example_inputs(network, Latents(4, 8, 1.0), rows=1, height=16, width=16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs.values())
    rows = [inputs[f"share_{i}"].shape[1] for i in range(program.levels)]
    counted = work(program, rows, [256 >> (2 * i) for i in range(program.levels)])
    assert counted == pytest.approx(counter.get_total_flops() / 2, rel=0.25)  # text, time


def test_bytes_are_those_of_the_rows_that_are_moved() -> None:
    unet = small_unet("demo")
    mask = mask_of("islands", 16, 16)
    batch = batch_of(unet, [mask])
    tables = batch.parts[0].tables
    for site in batch.program.sites:
        level = tables.levels[site.level]
        expected = {
            "halo": len(tables[site.table].halo) if site.table else 0,
            "key": len(level.inactive),
            "value": len(level.inactive),
            "norm": 1,
            "norm_rows": level.count,
        }[site.kind]
        assert numbers_needed(site, tables) == expected * site.width


def test_costs_follow_the_mask() -> None:
    unet = small_unet("sdxl")
    program = Program(unet)
    costs = Costs(dense=Line(0, 1e-9), sparse=Line(0.001, 1.1e-9), load=Line(0, 1e-9))
    found = [
        step_of(
            costs,
            program,
            make_tables(mask_of(kind, 32, 32), program.paddings),
            branches=2,
            caches=1,
            sites=program.sites,
            itemsize=2,
        )
        for kind in ("pixel", "islands", "full")
    ]
    assert found[0].sparse < found[1].sparse < found[2].sparse
    assert found[0].dense == found[1].dense == found[2].dense < found[2].sparse
    assert plan_steps([found[0]] * 5).kinds[-1] == "sparse"
    assert plan_steps([found[2]] * 5).kinds == ("dense",) * 5


@given(start=st.floats(0, 5), slope=st.floats(0.01, 5))
def test_a_fit_finds_the_line(start: float, slope: float) -> None:
    line = Line.fit([(x, start + slope * x) for x in (1, 2, 5, 9)])
    assert line(20) == pytest.approx(start + 20 * slope, rel=1e-6)


def test_fits_are_never_negative() -> None:
    assert Line.fit([(1, 5), (2, 3)]) == Line(4, 0)
    assert Line.fit([(1, 1), (2, 3)]).start == 0
    assert Line.fit([(4, 2)]) == Line(0, 0.5)
    with pytest.raises(ValueError, match="above zero"):
        Line.fit([])
