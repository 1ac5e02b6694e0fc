"""Requests that go by the low-rank side path, and when they do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tessera.adapters.costs import FRESH_S, MEASUREMENTS, SIZES, Costs, Curve, Group
from tessera.adapters.path_chooser import Paths
from tessera.adapters.settings import PATH_VARIABLE, AdapterSettings
from tessera.adapters.side import SET, SidePath, _Half
from tessera.adapters.switch import AdapterSwitch
from tessera.adapters.turns import Turns
from tessera.errors import BundleError, Unavailable
from tessera.networks.slots import FACTORS
from tessera.plan import AdapterUse
from tests.fakes.models import Models, models_of
from tests.unit.adapters.test_served import COMMON, apart, by_diffusers, folders, loras

__all__ = ["folders"]  # a fixture

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
    with models_of(folders("sd15"), board, **{PATH_VARIABLE: "side"}) as models:
        yield models


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", ["sd15", "sdxl"])
def test_pictures_equal_diffusers(
    folders: Callable[[str], Path], variant: str, tmp_path: Path
) -> None:
    """One LoRA, and two with weights below zero and above one, the text encoders apart."""
    bundle = folders(variant)
    with models_of(bundle, tmp_path / "board", **{PATH_VARIABLE: "side"}) as models:
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
    with models_of(folders("sd15"), tmp_path / "board", **{PATH_VARIABLE: "refit"}) as models:
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
    with models_of(bundle, tmp_path / "board", **{PATH_VARIABLE: "side"}) as models:
        alone = [models.generate(**r) for r in requests]
        together = models.together([dict(r) for r in requests])
    assert [p.info["lora_path"] for p in together] == ["refit", "side", "side", None]
    assert [p.info["mean_batch"] for p in together] == [1.0, 3.0, 3.0, 3.0]
    for one, other in zip(alone, together, strict=True):
        assert apart(one.image, other.image) <= 1


def test_nothing_is_opened_before_two_sets_meet(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    with models_of(folders("sd15"), tmp_path / "board", **{PATH_VARIABLE: "auto"}) as models:
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
    with models_of(folders("sd15"), tmp_path / "board", **{PATH_VARIABLE: "auto"}) as models:
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


def test_an_unknown_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATH_VARIABLE, "sideways")
    with pytest.raises(BundleError, match="'sideways'; accepted: auto, refit, side"):
        AdapterSettings.from_environment()


def test_a_lora_that_goes_fails_its_requests_only(
    aside: Models, folders: Callable[[str], Path]
) -> None:
    from tessera.adapters.merge import BASE
    from tessera.errors import Unavailable
    from tests.unit.denoise.test_tick import plan, running

    gone = (AdapterUse("gone", "0" * 16, 1.0),)
    side = aside.unet._switch.result()._paths.side
    requests = [running(plan(adapters=own)) for own in (gone, BASE)]
    entered = side.enter([(r, r.plan.adapters) for r in requests])
    assert entered == requests[1:]
    assert isinstance(requests[0].error, Unavailable)
    assert requests[1].error is None
    assert not side.takes(gone)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def measured(costs: Costs, sizes: dict[int, float], ranks: tuple[int, int] | None = None) -> Costs:
    for size, ms in sizes.items():
        for _ in range(MEASUREMENTS):
            costs.add(size, ms, ranks=ranks)
    return costs


def groups(count: int, steps: int = 20, active: bool = False) -> list[Group]:
    return [Group(2, steps, active and index == 0) for index in range(count)]


def test_costs_lie_between_those_of_the_sizes_beside() -> None:
    clock = Clock()
    curve = Curve(clock)
    for size, times in {2: (90, 10, 10), 8: (22, 22, 400), 16: (1, 1)}.items():
        for ms in times:
            curve.add(size, ms)
    assert (curve.at(2), curve.at(4), curve.at(8)) == (10, 14, 22)
    assert (curve.at(1), curve.at(16)) == (None, None)  # twice is not enough
    assert (curve.about(1), curve.about(16)) == (5, 44)
    clock.now = FRESH_S
    assert curve.about(4) is None


@pytest.mark.parametrize(
    ("count", "dense", "side", "refit_ms", "full", "better"),
    [
        (4, {2: 10, 8: 40}, 44, 1, False, False),  # a CPU: a batch costs what its rows cost
        (4, {2: 10, 8: 40}, 44, 600, False, True),  # dear refits
        (4, {2: 10, 8: 12}, 16, 1, False, True),  # a GPU: a batch costs little more than a row
        (4, {2: 10, 8: 30}, 32, 1, False, False),  # between: turns are better for most ...
        (4, {2: 10, 8: 30}, 32, 1, True, True),  # ... but not for those who wait for a place
        (1, {2: 10}, 12, 0, False, False),
        (1, {2: 10}, 12, 100, False, True),  # one set that is not in the engine
        (4, {2: 10}, None, 1, False, True),  # tried
        (4, {}, None, 1, False, False),  # what turns cost is measured first
        (1, {2: 10}, None, 1, False, False),
    ],
    ids=[
        "cpu", "dear refits", "gpu", "between", "between, full", "one set", "one set, dear refit",
        "untried", "nothing known", "one set, untried",
    ],
)  # fmt: skip
def test_the_better_way_is_taken(
    count: int,
    dense: dict[int, float],
    side: float | None,
    refit_ms: float,
    full: bool,
    better: bool,
) -> None:
    costs = measured(Costs(), dense)
    if side is not None:
        measured(costs, {2 * count: side}, (8, 1))
    price: dict[str, Any] = {"refit_ms": refit_ms, "quantum": 20}
    assert costs.side_is_better(groups(count), (8, 1), full=full, **price) is better


def test_turns_are_played_out() -> None:
    """Two sets of 30 steps, a quantum of 20, a step of 10 ms, a refit of 100 ms; the first set is
    in: A 200, B 100 + 200, A 100 + 100, B 100 + 100.
    """
    ends = (700.0, 900.0)
    for gain, better in ((0.96, False), (0.94, True)):
        each = gain * sum(ends) / 2 / 30
        costs = measured(measured(Costs(), {2: 10}), {4: each}, (1, 1))
        both = groups(2, steps=30, active=True)
        assert costs.side_is_better(both, (1, 1), refit_ms=100, quantum=20) is better


def test_calls_of_the_side_path_shrink() -> None:
    """One request of 10 steps and one of 30: 10 calls for both, 20 for the longer one."""
    costs = measured(measured(Costs(), {2: 10}), {2: 12, 4: 16}, (1, 1))
    pair = [Group(2, 10, True), Group(2, 30, False)]  # aside 160, 400; by turns 100, 400 + refit
    for refit_ms, better in ((40, False), (100, True)):
        found = costs.side_is_better(pair, (1, 1), refit_ms=refit_ms, quantum=100)
        assert found is better


def test_ranks_are_measured_apart() -> None:
    costs = measured(measured(Costs(), {2: 10}), {4: 99}, (64, 64))
    small = costs.side_is_better(groups(2), (8, 1), refit_ms=0, quantum=20)
    large = costs.side_is_better(groups(2), (64, 64), refit_ms=0, quantum=20)
    assert (small, large) == (True, False)


@pytest.mark.parametrize(
    ("dense", "side", "full", "tried"),
    [
        ({2: 10}, {}, False, True),
        ({2: 10, 6: 30}, {}, False, False),  # it cannot be cheaper than without LoRAs
        ({2: 10}, {(8, 1): {4: 20}}, False, False),  # nor than a smaller batch
        ({2: 10}, {(8, 1): {4: 20}}, True, True),
        ({2: 10}, {(4, 1): {6: 30}}, False, False),  # nor than smaller ranks
        ({2: 10}, {(8, 4): {6: 30}}, False, True),
        ({2: 10}, {(8, 1): {8: 30}}, False, True),
    ],
)
def test_what_cannot_pay_is_not_tried(
    dense: dict[int, float],
    side: dict[tuple[int, int], dict[int, float]],
    full: bool,
    tried: bool,
) -> None:
    """Three sets, by turns done after 10, 20 and 30 ms a step."""
    costs = measured(Costs(), dense)
    for ranks, sizes in side.items():
        measured(costs, sizes, ranks)
    found = costs.side_is_better(groups(3), (8, 1), refit_ms=0, quantum=20, full=full)
    assert found is tried


def test_only_the_latest_sizes_are_remembered() -> None:
    clock = Clock()
    curve = Curve(clock)
    for size in range(1, 2 * SIZES):
        clock.now += 1
        for _ in range(MEASUREMENTS):
            curve.add(size, float(size))
    assert (curve.at(SIZES - 1), curve.at(SIZES)) == (None, SIZES)
    assert len(curve._points) == SIZES


def side_path(open_halves: Callable[[], Any]) -> SidePath:
    factors: Any = SimpleNamespace(get=lambda own: [], ranks=lambda own: (1, 1))
    return SidePath(open_halves, factors, max_rows=2, max_rank=8, background=False)


@pytest.mark.parametrize("setting", ["side", "auto"])
def test_engines_that_cannot_be_opened_leave_all_requests_to_turns(setting: str) -> None:
    from tessera.adapters.merge import BASE
    from tests.unit.denoise.test_tick import plan, running

    def fail() -> Any:
        raise MemoryError("no memory for another UNet")

    side = side_path(fail)
    paths = Paths(setting, side, slots=8)
    requests = [running(plan(adapters=own)) for own in ((AdapterUse("a", "0" * 16, 1.0),), BASE)]
    members = [(r, r.plan.adapters) for r in requests]
    for _ in range(2):
        assert paths.choose(members, BASE, Turns(BASE)) == []
    assert side.failed
    assert not any(r.error for r in requests)


def test_when_no_set_of_a_turn_can_be_loaded_nobody_else_is_harmed() -> None:
    from tessera.adapters.merge import BASE
    from tests.unit.denoise.test_tick import plan, running

    def lost(own: object) -> Any:
        raise Unavailable("its file has gone")

    factors: Any = SimpleNamespace(get=lost, ranks=lambda own: (1, 1))
    side = SidePath(lambda: [], factors, max_rows=2, max_rank=8, background=False)
    side._opening = Future()
    side._opening.set_result(SimpleNamespace(predict=None))  # type: ignore[arg-type]
    store: Any = SimpleNamespace(touch=lambda digest: None, reading=lambda digest: False)
    patcher: Any = SimpleNamespace(active=BASE)
    switch = AdapterSwitch(patcher, store, Paths("side", side, slots=8))
    request = running(plan(adapters=(AdapterUse("a", "0" * 16, 1.0),)))

    def predict(*arguments: object) -> Any:
        raise AssertionError("nobody is left")

    assert switch.choose([request], predict) == ([], predict)
    assert isinstance(request.error, Unavailable)


def test_batches_are_forgotten_when_they_do_not_come_again() -> None:
    factors = {name: torch.ones(1, 3) for name in FACTORS}
    a, b, c = ((AdapterUse(name, "0" * 16, 1.0),) for name in "abc")
    engine: Any = SimpleNamespace(run=dict)
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
