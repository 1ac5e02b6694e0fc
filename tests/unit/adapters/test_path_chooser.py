"""When the side path is taken, and what happens when it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from tessera.adapters.merge import BASE
from tessera.adapters.path_chooser import LoraPathChooser
from tessera.adapters.side import SidePath
from tessera.adapters.switch import AdapterSwitch
from tessera.adapters.turns import Turns
from tessera.engines.devices import Device, Devices
from tessera.errors import Unavailable
from tessera.plan import AdapterUse
from tessera.shared.settings import LoraPath
from tests.samples.plans import plan, running

ONE = Devices([Device("cpu", "cpu")])


def side_path(open_halves: Callable[[], Any]) -> SidePath:
    factors: Any = SimpleNamespace(get=lambda own: [], ranks=lambda own: (1, 1))
    return SidePath(open_halves, factors, ONE, max_rows=2, max_rank=8, background=False)


@pytest.mark.parametrize("setting", [LoraPath.SIDE, LoraPath.AUTO])
def test_engines_that_cannot_be_opened_leave_all_requests_to_turns(setting: LoraPath) -> None:
    def fail() -> Any:
        raise MemoryError("no memory for another UNet")

    side = side_path(fail)
    paths = LoraPathChooser(setting, side)
    requests = [running(plan(adapters=own)) for own in ((AdapterUse("a", "0" * 16, 1.0),), BASE)]
    members = [(r, r.plan.adapters) for r in requests]
    for _ in range(2):
        assert paths.choose(members, BASE, Turns(BASE)) == []
    assert side.failed
    assert not any(r.error for r in requests)


def test_when_no_set_of_a_turn_can_be_loaded_nobody_else_is_harmed() -> None:
    def lost(own: object) -> Any:
        raise Unavailable("its file has gone")

    factors: Any = SimpleNamespace(get=lost, ranks=lambda own: (1, 1))
    side = SidePath(lambda: [], factors, ONE, max_rows=2, max_rank=8, background=False)
    side._opening = Future()
    side._opening.set_result(SimpleNamespace(predict=None))  # type: ignore[arg-type]
    store: Any = SimpleNamespace(touch=lambda digest: None, reading=lambda digest: False)
    patcher: Any = SimpleNamespace(current=BASE)
    switch = AdapterSwitch(patcher, store, LoraPathChooser(LoraPath.SIDE, side))
    request = running(plan(adapters=(AdapterUse("a", "0" * 16, 1.0),)))

    def predict(*arguments: object) -> Any:
        raise AssertionError("nobody is left")

    assert switch.choose([request], predict) == ([], predict)
    assert isinstance(request.error, Unavailable)


def test_requests_whose_files_are_being_read_are_not_ready() -> None:
    """Unless they may begin without their LoRAs, or nobody is ready."""
    store: Any = SimpleNamespace(reading=lambda digest: digest.startswith("1"))
    patcher: Any = SimpleNamespace(current=BASE)
    switch = AdapterSwitch(patcher, store, LoraPathChooser(LoraPath.REFIT, None))
    here, read = (AdapterUse("a", digit * 16, 1.0) for digit in "01")
    plain, ready, waits = (running(plan(adapters=each)) for each in ((), (here,), (here, read)))
    later = running(plan(adapters=(read,), adapters_by=2))
    assert switch.ready([plain, ready, waits, later]) == [plain, ready, later]
    later.step = 2
    assert switch.ready([waits, later]) == []
