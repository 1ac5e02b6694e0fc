"""Diffusers without torch's compiler is the same diffusers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin

from tessera.contract import SCHEDULERS
from tessera.networks import light_diffusers
from tests.fakes import lora
from tests.fakes.checkpoint import topology


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


def test_schedulers_are_those_of_diffusers() -> None:
    import diffusers

    for spec in SCHEDULERS.values():
        assert light_diffusers.scheduler_class(spec.cls) is getattr(diffusers, spec.cls)


@pytest.mark.parametrize("variant", ["sd15", "sdxl"])
@pytest.mark.parametrize("layout", lora.LAYOUTS)
def test_names_are_converted_as_diffusers_loader_does(variant: str, layout: str) -> None:
    modules = lora.ATTENTION if layout == "diffusers-old" else lora.EVERYTHING
    tensors = lora.LAYOUTS[layout](lora.random_pairs(topology(variant), modules=modules))
    layers = 2 if variant == "sdxl" else None
    config = topology(variant).unet.config if layers else None
    theirs = StableDiffusionXLLoraLoaderMixin.lora_state_dict(dict(tensors), unet_config=config)
    state, alphas = light_diffusers.lora_state_dict(tensors, layers_per_block=layers)
    assert list(state) == list(theirs[0])
    assert all(torch.equal(state[name], theirs[0][name]) for name in state)
    assert alphas == (theirs[1] or {})
