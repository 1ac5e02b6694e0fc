"""How many steps a request may ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.engines.bundle import Bundle
from tessera.errors import InvalidInput
from tessera.manifest import Manifest
from tessera.requests.request import read_schedule
from tessera.shared.settings import ServerSettings
from tests.samples.bundles import Small
from tests.samples.requests import inputs


def manifest_of(folder: Path, most: int) -> Manifest:
    return Bundle.of(ServerSettings(folder, max_steps=most)).manifest


@pytest.mark.parametrize(("most", "last"), [(0, 1000), (7, 7), (5000, 1000)])
def test_a_server_may_limit_steps(small: Callable[[str], Small], most: int, last: int) -> None:
    manifest = manifest_of(small("sd15").bundle, most)
    assert read_schedule(inputs(STEPS=last, SCHEDULER="euler"), manifest)[0] == last
    with pytest.raises(InvalidInput, match=f"accepted: an integer from 1 to {last} with"):
        read_schedule(inputs(STEPS=last + 1, SCHEDULER="euler"), manifest)
    assert manifest.defaults.steps <= last


def test_a_server_cannot_allow_more_than_a_sampler_takes(small: Callable[[str], Small]) -> None:
    manifest = manifest_of(small("sd15").bundle, 900)
    assert (manifest.max_steps("lcm"), manifest.max_steps("euler")) == (50, 900)
