"""The published configurations on the meta device: graphs, names and sizes of the real checkpoints
without their weights.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
from torch import nn

from tessera.networks import graphs, modules
from tessera.variants import VARIANTS
from tessera_build.checkpoint import variant_of
from tests.fakes.true_configs import CONFIGS, PARAMETERS

PARTS = {"unet": ("unet_encoder", "unet_decoder"), "vae": ("vae_encoder", "vae_decoder")}
LORA_TARGETS = (nn.Linear, nn.Conv2d)
every_part = pytest.mark.parametrize(
    ("variant", "part"), list(PARAMETERS), ids=[f"{v}-{p}" for v, p in PARAMETERS]
)


@cache
def network(variant: str, part: str) -> nn.Module:
    return graphs.new_network(part, CONFIGS[variant][part])


def modules_of(variant: str, part: str) -> list[modules.GraphModule]:
    whole = network(variant, part)
    return [graphs.wrap(g, whole, VARIANTS[variant]) for g in PARTS.get(part, (part,))]


@every_part
def test_sizes_are_the_published_ones(variant: str, part: str) -> None:
    count = sum(p.numel() for p in network(variant, part).parameters())
    assert count == PARAMETERS[variant, part]


@every_part
def test_every_weight_is_in_exactly_one_graph_under_its_own_name(variant: str, part: str) -> None:
    held = Counter(n for g in modules_of(variant, part) for n, _ in g.named_parameters())
    assert held == Counter(n for n, _ in network(variant, part).named_parameters())


@every_part
def test_every_lora_target_is_in_exactly_one_graph(variant: str, part: str) -> None:
    whole = network(variant, part)
    targets = [f"{n}.weight" for n, m in whole.named_modules() if isinstance(m, LORA_TARGETS)]
    assert len(targets) > 50
    held = Counter(n for g in modules_of(variant, part) for n, _ in g.named_parameters())
    assert {held[name] for name in targets} == {1}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_published_configuration_finds_its_row(variant: str) -> None:
    config = dict(network(variant, "unet").config)  # type: ignore[arg-type]
    assert variant_of(VARIANTS[variant].pipeline, config) == variant


def test_inputs_of_the_halves() -> None:
    encoder, decoder = modules_of("sdxl", "unet")
    assert encoder.inputs[:3] == ("sample", "timestep", "encoder_hidden_states")
    assert encoder.inputs[3:] == ("text_embeds", "time_ids")
    assert encoder.outputs == ("mid", "emb", *(f"skip_{i}" for i in range(9)))
    assert decoder.inputs[3:] == encoder.outputs[2:]
    assert len(modules_of("sd15", "unet")[0].outputs) == 2 + 12
