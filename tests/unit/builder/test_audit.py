"""Every field of a configuration is applied or refused: none is left out of the table, and what
pictures depend on arrives in them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import pytest
import transformers
from diffusers import ModelMixin

from tessera.errors import BundleError
from tessera_build.audit import FIELDS, Only, check_config
from tessera_build.graphs import latents_of
from tests.fakes.checkpoint import sdxl, topology
from tests.samples.audit_page import BEGIN, END, PAGE, table
from tests.samples.drawing import by_diffusers, draw


def fields_of(kind: str) -> set[str]:
    owner = transformers if kind == "CLIPTextConfig" else diffusers
    return set(inspect.signature(getattr(owner, kind).__init__).parameters) - {"self"}


def undecided(kind: str, table: Mapping[str, object]) -> set[str]:
    """Fields of a class that a table lacks, and those that only the table has."""
    return set(table) ^ fields_of(kind)


@pytest.mark.parametrize("kind", FIELDS)
def test_the_table_has_every_field_of_the_class_and_no_other(kind: str) -> None:
    assert not undecided(kind, FIELDS[kind])


@pytest.mark.parametrize("kind", FIELDS)
def test_a_field_that_is_taken_out_of_the_table_is_missed(kind: str) -> None:
    for field in FIELDS[kind]:
        rest = {name: rule for name, rule in FIELDS[kind].items() if name != field}
        assert undecided(kind, rest) == {field}


def test_the_table_in_the_docs_is_the_codes() -> None:
    assert f"{BEGIN}{table()}{END}" in PAGE.read_text(), "python -m tests.samples.audit_page"


@pytest.mark.parametrize("variant", ["sd15", "sd21", "sdxl"])
def test_the_published_topologies_are_accepted(variant: str) -> None:
    pipe = topology(variant)
    for network in (pipe.unet, pipe.vae):
        check_config("network", type(network).__name__, network.config)


REFUSED: dict[str, dict[str, Any]] = {
    "UNet2DConditionModel": {
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "time_embedding_type": "fourier",
        "time_embedding_act_fn": "silu",
        "resnet_time_scale_shift": "scale_shift",
        "down_block_types": ["DownBlock2D", "SimpleCrossAttnDownBlock2D"],
        "center_input_sample": True,
        "only_cross_attention": [True, False],
        "cross_attention_dim": None,
        "dual_cross_attention": True,
        "conv_in_kernel": 5,
    },
    "AutoencoderKL": {"shift_factor": 0.1, "latent_channels": 16, "in_channels": 4},
    "ControlNetModel": {"mid_block_type": None, "conditioning_channels": 4},
    "ControlNetUnionModel": {"controlnet_conditioning_channel_order": "bgr"},
}


CASES = [(k, f, v) for k, fields in REFUSED.items() for f, v in fields.items()]


@pytest.mark.parametrize(("kind", "field", "value"), CASES)
def test_what_the_graphs_do_not_compute_is_refused_by_name(
    kind: str, field: str, value: object
) -> None:
    pipe = topology("sd15")
    config = dict((pipe.vae if kind == "AutoencoderKL" else pipe.unet).config)
    with pytest.raises(BundleError, match=f"the network has {field} .*; accepted: "):
        check_config("network", kind, config | {field: value})


def test_every_rule_with_values_accepts_the_class_s_default() -> None:
    """But for fields that every checkpoint sets."""
    for kind, rules in FIELDS.items():
        owner = transformers if kind == "CLIPTextConfig" else diffusers
        defaults = inspect.signature(getattr(owner, kind).__init__).parameters
        config = {name: defaults[name].default for name in rules}
        if any(isinstance(rule, Only) for rule in rules.values()):
            check_config("network", kind, config)


@pytest.mark.parametrize("name", ["AutoencoderDC", "ConsistencyDecoderVAE"])
def test_another_class_is_refused_by_name(name: str) -> None:
    kind: type[ModelMixin] = getattr(diffusers, name)
    with pytest.raises(BundleError, match=f"the VAE is of class {name}; accepted: .*AutoencoderKL"):
        check_config("VAE", kind.__name__, {})


def test_means_and_deviations_of_latents_arrive_in_the_picture() -> None:
    """As in Playground v2.5: an EDM sampler, and latents that are normalised by channel."""
    pipe = sdxl()
    pipe.vae.register_to_config(
        latents_mean=[-1.6, 1.4, 0.6, -2.2], latents_std=[8.4, 6.0, 5.1, 4.0], scaling_factor=0.5
    )
    pipe.scheduler = diffusers.EDMDPMSolverMultistepScheduler(sigma_max=80.0, sigma_min=0.002)
    assert latents_of(pipe).std == (8.4, 6.0, 5.1, 4.0)
    sampling: dict[str, Any] = {"steps": 4, "guidance": 3.0, "seed": 5}
    expected = by_diffusers(pipe, **sampling).astype(int)
    found = draw(pipe, "sdxl", "edm_dpmpp_2m", **sampling).astype(int)
    assert np.abs(found - expected).max() <= 1
    pipe.vae.register_to_config(latents_mean=None, latents_std=None)
    plain = draw(pipe, "sdxl", "edm_dpmpp_2m", **sampling).astype(int)
    assert np.abs(plain - expected).max() > 20


def test_pipelines_that_do_not_look_at_means_get_none() -> None:
    pipe = topology("sd15")
    pipe.vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[2.0] * 4)
    assert latents_of(pipe).std == ()
