"""Diffusers without torch's compiler is the same diffusers."""

from __future__ import annotations

import subprocess
import sys

from tessera.contract import SCHEDULERS
from tessera.networks import light_diffusers


def run(code: str, **variables: str) -> str:
    """What a fresh Python prints."""
    path = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**path, **variables}
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_the_compiler_is_not_imported_and_can_be_afterwards() -> None:
    assert run(
        "import sys\n"
        "from tessera.networks import light_diffusers\n"
        "print('torch._dynamo' in sys.modules, len(sys.meta_path))\n"
        "import torch._dynamo\n"
        "from diffusers import UNet2DConditionModel\n"
        "print(torch._dynamo.allow_in_graph.__name__, 'torch._dynamo' in sys.modules)\n"
    ).split() == ["False", run("import sys; print(len(sys.meta_path))"), "allow_in_graph", "True"]


def test_whoever_compiles_gets_what_diffusers_wants() -> None:
    code = "import sys; from tessera.networks import light_diffusers; "
    code += "print('torch._dynamo' in sys.modules)"
    assert run(code, TESSERA_TORCH_COMPILE="1") == "True"


def test_statistics_are_imported_when_a_sampler_needs_them() -> None:
    assert run(
        "import sys\n"
        "from tessera.networks.schedulers import new_scheduler\n"
        "new_scheduler('euler', {})\n"
        "print('scipy.stats._distn_infrastructure' in sys.modules)\n"
        "new_scheduler('euler_beta', {}).set_timesteps(3)\n"
        "import scipy.stats\n"
        "print(scipy.stats.norm.cdf(0), sys.modules['scipy.stats'] is scipy.stats)\n"
    ).split() == ["False", "0.5", "True"]


def test_schedulers_are_those_of_diffusers() -> None:
    import diffusers

    for spec in SCHEDULERS.values():
        assert light_diffusers.scheduler_class(spec.cls) is getattr(diffusers, spec.cls)
