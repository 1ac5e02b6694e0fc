"""Forms that the releases do not have: from the checkpoint to the pictures that Triton serves,
against diffusers' pipelines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.manifest import read_manifest
from tessera_client import Client
from tests.samples.drawing import PROMPT, by_diffusers
from tests.samples.forms import FORMS, Form, make_form
from tests.samples.schedulers import diffusers_scheduler
from tests.samples.servers import ended_whole

GUIDANCE = 4.0


def expected(form: Form) -> Any:
    """The pipeline's picture, with the bundle's default sampler and steps."""
    defaults = read_manifest(form.bundle).defaults
    form.pipe.scheduler = diffusers_scheduler(defaults.scheduler, form.pipe.scheduler.config)
    picture = by_diffusers(form.pipe, steps=defaults.steps, guidance=GUIDANCE, seed=7)
    return picture.astype(int)


@pytest.mark.parametrize("name", FORMS)
def test_pictures_equal_diffusers(name: str, tmp_path: Path) -> None:
    form = make_form(name)
    with (
        ended_whole(form.bundle, tmp_path / "log", "--threads=2") as server,
        Client(server.http, timeout=300) as client,
    ):
        found = client.generate(PROMPT, seed=7, guidance=GUIDANCE)
    reference = expected(form)
    assert reference.std() > 5, "a flat picture would prove nothing"
    assert np.abs(np.asarray(found.image, int) - reference).max() <= 2
