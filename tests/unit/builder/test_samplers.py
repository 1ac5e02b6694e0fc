"""The samplers that a checkpoint's scheduler config can be used with, and how its network was
trained.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tessera.contract import SCHEDULERS
from tessera.errors import BundleError
from tessera_build.checkpoint import open_checkpoint
from tessera_build.markers import Training
from tessera_build.samplers import default_sampler, samplers_of
from tests.fakes.checkpoint import topology
from tests.fakes.single_file import write_single_file
from tests.samples.drawing import by_diffusers, draw
from tests.samples.schedulers import SD15

PLAIN = [name for name, spec in SCHEDULERS.items() if not spec.edm]
EDM = [name for name, spec in SCHEDULERS.items() if spec.edm]


def config_of(cls: str, **settings: Any) -> dict[str, Any]:
    return SD15 | {"_class_name": cls} | settings


def test_every_sampler_works_with_a_usual_config() -> None:
    assert list(samplers_of(config_of("PNDMScheduler", skip_prk_steps=True))) == PLAIN


@pytest.mark.parametrize("cls", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_an_edm_network_has_samplers_of_its_own(cls: str) -> None:
    config = {"_class_name": cls, "sigma_max": 80.0, "sigma_min": 0.002, "sigma_data": 0.5}
    assert list(samplers_of(config)) == EDM
    assert SCHEDULERS[default_sampler(config, None, "euler")].cls == cls
    with pytest.raises(
        BundleError, match=r"'euler' .* \(the checkpoint is EDM .* edm_euler, edm_dpmpp_2m"
    ):
        default_sampler(config, "euler", "euler")


@pytest.mark.parametrize(
    ("config", "default"),
    [
        (config_of("DPMSolverMultistepScheduler", algorithm_type="deis"), "dpmpp_2m"),
        (config_of("DPMSolverMultistepScheduler", use_exponential_sigmas=True), "dpmpp_2m"),
        (
            config_of("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
            "dpmpp_2m_sde",
        ),
        (config_of("EulerDiscreteScheduler"), "euler"),
        (config_of("DDIMScheduler"), "ddim"),
        (config_of("PNDMScheduler"), "unipc"),
    ],
    ids=["deis", "exponential", "sde", "euler", "ddim", "pndm"],
)
def test_the_default_is_the_configs_own_sampler_or_the_variants(
    config: dict[str, Any], default: str
) -> None:
    assert default_sampler(config, None, "unipc") == default
    assert set(samplers_of(config)) >= {"dpmpp_2m", "dpmpp_2m_karras", "euler"}


def test_one_that_cannot_be_used_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, *arguments: object, **options: object) -> None:
        raise ValueError("beta sigmas need a library that is not there")

    monkeypatch.setattr(diffusers.EulerDiscreteScheduler, "set_timesteps", refuse)
    config = config_of("EulerDiscreteScheduler")
    assert not {"euler", "euler_beta"} & set(samplers_of(config))
    assert default_sampler(config, None, "ddim") == "ddim"
    with pytest.raises(BundleError, match="beta sigmas need a library that is not there"):
        default_sampler(config, "euler", "ddim")


ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}


def test_zero_terminal_snr_needs_a_sampler_that_knows_it() -> None:
    """Diffusers would leave it out without a word."""
    offered = samplers_of(config_of("DDIMScheduler", **ZERO_SNR))
    assert {"euler", "ddim", "dpmpp_2m_sde", "tcd"} <= set(offered)
    assert not {"heun", "kdpm2_karras", "lms", "pndm", "dpmpp_sde"} & set(offered)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """XL as a diffusers folder."""
    topology("sdxl").save_pretrained(tmp_path / "xl")
    return tmp_path / "xl"


@pytest.fixture
def marked(tmp_path: Path) -> Callable[..., Path]:
    """The same as a single file, with markers beside its weights."""

    def make(**markers: torch.Tensor) -> Path:
        path = tmp_path / "plain.safetensors"
        write_single_file(topology("sdxl"), path)
        save_file(load_file(path) | markers, tmp_path / "marked.safetensors")
        return tmp_path / "marked.safetensors"

    return make


def test_markers_of_v_prediction_are_followed(folder: Path, marked: Callable[..., Path]) -> None:
    path = marked(v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    pipe, _ = open_checkpoint(path, config=folder)
    plain, _ = open_checkpoint(path.with_name("plain.safetensors"), config=folder)
    read = pipe.scheduler.config
    assert (read.prediction_type, read.rescale_betas_zero_snr, read.timestep_spacing) == (
        "v_prediction",
        True,
        "trailing",
    )
    expected_config = plain.scheduler.config
    assert expected_config.prediction_type == "epsilon"
    plain.scheduler = diffusers.EulerDiscreteScheduler.from_config(
        expected_config,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    sampling: dict[str, Any] = {"steps": 4, "guidance": 3.0, "seed": 2}
    found = draw(pipe, "sdxl", "euler", **sampling).astype(int)
    assert np.abs(found - by_diffusers(plain, **sampling)).max() <= 1


def test_markers_of_edm_are_followed(folder: Path, marked: Callable[..., Path]) -> None:
    mean, std = torch.tensor([0.5, -1.0, 2.0, 0.1]), torch.tensor([8.0, 6.0, 5.0, 4.0])
    path = marked(edm_mean=mean.view(1, 4, 1, 1), edm_std=std.view(1, 4, 1, 1))
    pipe, _ = open_checkpoint(path, config=folder)
    vae = pipe.vae.config
    assert (vae.latents_mean, vae.latents_std) == (pytest.approx(mean.tolist()), std.tolist())
    assert vae.scaling_factor == 0.5
    assert type(pipe.scheduler).__name__ == "EDMDPMSolverMultistepScheduler"


def test_a_kind_that_is_not_supported_is_refused(folder: Path, marked: Callable[..., Path]) -> None:
    path = marked(**{"edm_vpred.sigma_max": torch.ones(1)})
    with pytest.raises(
        BundleError, match=r"is an EDM network with v-prediction \(tensor edm_vpred"
    ):
        open_checkpoint(path, config=folder)


def test_options_replace_what_the_config_says(tmp_path: Path) -> None:
    checkpoint = tmp_path / "sd21"
    topology("sd21").save_pretrained(checkpoint)
    as_written, _ = open_checkpoint(checkpoint)
    assert as_written.scheduler.config.prediction_type == "v_prediction"
    pipe, _ = open_checkpoint(checkpoint, training=Training("epsilon", zero_snr=True))
    read = pipe.scheduler.config
    assert (read.prediction_type, read.rescale_betas_zero_snr, read.timestep_spacing) == (
        "epsilon",
        True,
        "trailing",
    )
