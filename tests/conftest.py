"""Fixtures that several folders of tests share."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.samples.bundles import Small, make_small
from tests.samples.programs import marked
from tests.samples.waiting import until

# How long an example takes, or is drawn, says how busy the machine is, nothing of the code. The
# examples are the same in every run: what fails in one fails in all.
settings.register_profile(
    "tessera", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tessera")

# Servers on a CPU have one slot by themselves. Tests need more requests in a step.
os.environ.setdefault("TESSERA_SLOTS", "8")

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: more threads only get in
    torch.set_num_threads(1)  # each other's way


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws without a seed of its own is the same whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """What tests have started ends with them: a process that computes would take a core from all
    that follow.
    """
    name, value = "TESSERA_TESTED_BY", str(os.getpid())
    os.environ[name] = value
    yield
    mark = f"{name}={value}"
    if until(lambda: not marked(mark), seconds=30):
        return
    left = marked(mark)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    pytest.fail(f"still running: {left}")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Small]:
    """Makes the `Small` of a name (see `make_small`), once per run; its bundle is kept for the next
    run.
    """
    made: dict[str, Small] = {}

    def make(variant: str) -> Small:
        if variant not in made:
            made[variant] = make_small(variant, tmp_path_factory.mktemp(variant))
        return made[variant]

    return make
