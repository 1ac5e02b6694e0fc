"""Requests that go by the low-rank side path."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.adapters.costs import MEASUREMENTS
from tessera.adapters.merge import BASE
from tessera.adapters.side import SET, _Half
from tessera.errors import Unavailable
from tessera.networks.slots import FACTORS
from tessera.plan import AdapterUse
from tests.fakes.engine import FakeEngine
from tests.fakes.models import Models, models_of
from tests.samples.adapters import COMMON, apart, by_diffusers, loras
from tests.samples.bundles import IN_HALF
from tests.samples.plans import plan, running

SETS: list[Any] = [
    (), (("a", 1.0),), (("b", 1.0),), (), (("a", 0.5),), (("a", 1.0),),
    (("b", 0.3), ("c", 1.0)), (),
]  # fmt: skip


@pytest.fixture(scope="module")
def aside(
    folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Models]:
    """Models that use the side path whenever they can."""
    board = tmp_path_factory.mktemp("board") / "board"
    with models_of(folders("sd15"), board, TESSERA_LORA_PATH="side") as models:
        yield models


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", ["sd15", "sdxl", *IN_HALF])
def test_pictures_equal_diffusers(
    folders: Callable[[str], Path], variant: str, tmp_path: Path
) -> None:
    """One LoRA, and two with weights below zero and above one, the text encoders apart."""
    bundle = folders(variant)
    with models_of(bundle, tmp_path / "board", TESSERA_LORA_PATH="side") as models:
        plain = models.generate(**COMMON, SEED=3, GUIDANCE=4.0).image
        for chosen in ([("a", 0.8, 0.8)], [("b", -0.5, 1.2), ("c", 1.4, 0.3)]):
            served = models.generate(**COMMON, SEED=3, GUIDANCE=4.0, LORAS=loras(*chosen))
            assert served.info["lora_path"] == "side"
            assert apart(served.image, plain) > 20, "a LoRA without effect would prove nothing"
            assert apart(served.image, by_diffusers(variant, bundle, chosen, 3)) <= 2


def test_eight_requests_with_five_sets_share_every_step(aside: Models) -> None:
    requests = [{**COMMON, "SEED": i, "LORAS": loras(*s)} for i, s in enumerate(SETS)]
    alone = [aside.generate(**r) for r in requests]
    together = aside.together([dict(r) for r in requests])
    for one, other, own in zip(alone, together, SETS, strict=True):
        assert apart(one.image, other.image) <= 1
        assert other.info["lora_path"] == ("side" if own else None)
        assert (other.info["mean_batch"], other.info["side_ticks"]) == (8.0, 4)
        assert (other.info["switches"], other.info["passed_over"]) == (0, 0)


def test_the_side_path_and_refits_make_the_same_pictures(
    aside: Models, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    wanted = {**COMMON, "SEED": 4, "LORAS": loras(("a", 0.7), ("c", 1.0))}
    by_side = aside.generate(**wanted)
    with models_of(folders("sd15"), tmp_path / "board", TESSERA_LORA_PATH="refit") as models:
        by_refit = models.generate(**wanted)
    assert (by_side.info["lora_path"], by_side.info["refit_ms"] > 0) == ("side", True)  # the text
    assert (by_refit.info["lora_path"], by_refit.info["side_ticks"]) == ("refit", 0)
    assert apart(by_side.image, by_refit.image) <= 1


def test_bounded_requests_need_not_wait(aside: Models) -> None:
    wanted = {**COMMON, "STEPS": 10, "LORAS": loras(("a", 1.0)), "SEED": 2}
    aside.generate(**wanted)  # "a" is in memory from here on
    bounded = {**wanted, "parameters": {"lora_policy": "bounded"}}
    _, picture = aside.together([{**COMMON, "STEPS": 10}, bounded])
    assert (picture.info["adapted_at"], picture.info["passed_over"]) == (0, 0)


def test_sets_beyond_the_rank_take_turns(folders: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(folders("sd15"), bundle)
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["limits"]["lora_rank"] = 8
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    sets: list[Any] = [(("a", 1.0), ("b", 1.0)), (("a", 1.0),), (("b", 0.5), ("c", 1.0)), ()]
    requests = [{**COMMON, "SEED": i, "LORAS": loras(*s)} for i, s in enumerate(sets)]
    with models_of(bundle, tmp_path / "board", TESSERA_LORA_PATH="side") as models:
        alone = [models.generate(**r) for r in requests]
        together = models.together([dict(r) for r in requests])
    assert [p.info["lora_path"] for p in together] == ["refit", "side", "side", None]
    assert [p.info["mean_batch"] for p in together] == [1.0, 3.0, 3.0, 3.0]
    for one, other in zip(alone, together, strict=True):
        assert apart(one.image, other.image) <= 1


def test_nothing_is_opened_before_two_sets_meet(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    with models_of(folders("sd15"), tmp_path / "board", TESSERA_LORA_PATH="auto") as models:
        models.generate(**COMMON)
        models.generate(**COMMON, LORAS=loras(("a", 1.0)))
        side = models.unet._switch.result()._paths.side
        assert side._opening is None
        pictures = models.together(
            [{**COMMON, "STEPS": 8, "LORAS": loras(*own)} for own in SETS[:3]]
        )
        assert side._opening is not None
        assert all(p.image.any() for p in pictures)


def test_auto_takes_the_side_path_once_it_is_known_to_be_cheaper(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """With made-up costs of a machine whose calls cost the same whatever their size."""
    with models_of(folders("sd15"), tmp_path / "board", TESSERA_LORA_PATH="auto") as models:
        requests = [{**COMMON, "SEED": i, "LORAS": loras(*own)} for i, own in enumerate(SETS)]
        alone = [models.generate(**r) for r in requests]
        paths = models.unet._switch.result()._paths
        paths.side.open()
        paths.side._opening.result()
        paths.observe = lambda *args: None
        for _ in range(MEASUREMENTS):
            for requests_in_it in range(1, 9):
                paths.costs.add(512 * requests_in_it, 10.0, ranks=None)
        together = models.together([dict(r) for r in requests])
        assert {p.info["lora_path"] for p in together} == {None, "side"}
        assert {p.info["mean_batch"] for p in together} == {8.0}
        for ranks in [(r, c) for r in (1, 2, 4, 8) for c in (1, 2)]:
            for size in (512, 512 * 8) * MEASUREMENTS:
                paths.costs.add(size, 1e6, ranks=ranks)
        again = models.together([dict(r) for r in requests])
    assert {p.info["lora_path"] for p in again} == {None, "refit"}
    for one, other, last in zip(alone, together, again, strict=True):
        assert apart(one.image, other.image) <= 1
        assert apart(one.image, last.image) <= 1


def test_a_lora_that_goes_fails_its_requests_only(
    aside: Models, folders: Callable[[str], Path]
) -> None:

    gone = (AdapterUse("gone", "0" * 16, 1.0),)
    side = aside.unet._switch.result()._paths.side
    requests = [running(plan(adapters=own)) for own in (gone, BASE)]
    entered = side.enter([(r, r.plan.adapters) for r in requests])
    assert entered == requests[1:]
    assert isinstance(requests[0].error, Unavailable)
    assert requests[1].error is None
    assert not side.takes(gone)


def test_batches_are_forgotten_when_they_do_not_come_again() -> None:
    factors = {name: torch.ones(1, 3) for name in FACTORS}
    a, b, c = ((AdapterUse(name, "0" * 16, 1.0),) for name in "abc")
    engine = FakeEngine(dict)
    half = _Half(engine, lambda: [(own, [factors]) for own in (a, b, c)], 0, 8)
    for numbers in ([0, 1], [2, 2]):
        half.run({SET: torch.tensor(numbers)})
    half.forget_unused()
    assert set(half._joined) == {(a, b), (c, c)}
    first = half._joined[a, b]
    half.run({SET: torch.tensor([0, 1])})
    half.forget_unused()
    assert list(half._joined) == [(a, b)]
    assert half._joined[a, b] is first
    half.forget()
    assert not half._joined
