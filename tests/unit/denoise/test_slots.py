"""How many requests take part in a step."""

from __future__ import annotations

import pytest

from tessera.contract.limits import CPU_SLOTS, MAX_SLOTS
from tessera.denoise.slots import slots_of
from tessera.errors import BundleError


@pytest.mark.parametrize(
    ("wanted", "places", "slots"),
    [
        (0, ["cpu"], CPU_SLOTS),
        (0, ["cpu", "cpu"], 2 * CPU_SLOTS),
        (0, ["cpu"] * 9, MAX_SLOTS),
        (0, ["gpu:0"], MAX_SLOTS),
        (0, ["gpu:0", "cpu"], MAX_SLOTS),
        (5, ["cpu"], 5),
        (5, ["gpu:0"], 5),
        (MAX_SLOTS, ["cpu"], MAX_SLOTS),
    ],
)
def test_they_follow_the_devices_unless_an_operator_says_so(
    wanted: int, places: list[str], slots: int
) -> None:
    assert slots_of(wanted, MAX_SLOTS, places) == slots


def test_a_model_with_fewer_has_no_more() -> None:
    assert slots_of(0, 1, ["cpu"]) == 1
    with pytest.raises(BundleError, match="TESSERA_SLOTS is 2; accepted: 0 to 1"):
        slots_of(2, 1, ["cpu"])
