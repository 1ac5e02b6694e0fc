"""Checkpoints with random weights in the true topologies of Stable Diffusion 1.5, 2.1 and XL, at
small widths.

Norms and biases are random too: equal tensors would hide a mix-up of names. `sample_size` is 16, so
that the natural picture has 128 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from tessera.variants import VARIANTS
from tessera_build.demo.scenes import vocabulary
from tessera_build.demo.tokenizer import build_tokenizer
from tessera_build.parts import inpainting_pipeline

SAMPLE_SIZE = 16
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_FOUR_LEVELS = {
    "block_out_channels": (32, 64, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}


def sd15() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5: convolutions as projections, one head count for every level."""
    unet = _unet(cross_attention_dim=48, attention_head_dim=8, **_FOUR_LEVELS)
    scheduler = PNDMScheduler(**_BETAS, skip_prk_steps=True, steps_offset=1)
    return _one_encoder(unet, 48, scheduler)


def sd21() -> StableDiffusionPipeline:
    """Stable Diffusion 2.1: linear projections, heads per level, velocity prediction."""
    unet = _unet(
        cross_attention_dim=64,
        attention_head_dim=(2, 4, 4, 4),
        use_linear_projection=True,
        **_FOUR_LEVELS,
    )
    scheduler = DDIMScheduler(
        **_BETAS,
        prediction_type="v_prediction",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )
    return _one_encoder(unet, 64, scheduler, hidden_act="gelu")


def sdxl() -> StableDiffusionXLPipeline:
    """Stable Diffusion XL: three levels with 0, 2 and 3 (truly 10) transformer layers, two text
    encoders, pooled embedding and sizes.
    """
    widths, time_width = (24, 40), 8
    unet = _unet(
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        attention_head_dim=(2, 4, 8),
        use_linear_projection=True,
        cross_attention_dim=sum(widths),
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        projection_class_embeddings_input_dim=6 * time_width + widths[1],
    )
    tokenizer = build_tokenizer(vocabulary())
    first = CLIPTextModel(_text_config(tokenizer, widths[0]))
    second = CLIPTextModelWithProjection(_text_config(tokenizer, widths[1], hidden_act="gelu"))
    return StableDiffusionXLPipeline(
        vae=randomised(_vae(0.13025)),
        text_encoder=randomised(first),
        text_encoder_2=randomised(second),
        tokenizer=tokenizer,
        tokenizer_2=build_tokenizer(vocabulary()),
        unet=randomised(unet),
        scheduler=EulerDiscreteScheduler(**_BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


TOPOLOGIES: dict[str, Callable[[], DiffusionPipeline]] = {"sd15": sd15, "sd21": sd21, "sdxl": sdxl}


def topology(name: str) -> DiffusionPipeline:
    """The pipeline of a variant in float32, the same at every call.

    `sd15-fp16` has the weights of `sd15` after they were in half precision, `sd15-inpainting` has
    an inpainting UNet.
    """
    torch.manual_seed(0)
    variant, _, kind = name.partition("-")
    pipe = TOPOLOGIES[variant]()
    if kind == "inpainting":
        pipe.unet = randomised(UNet2DConditionModel(**dict(pipe.unet.config) | {"in_channels": 9}))
        return getattr(diffusers, inpainting_pipeline(VARIANTS[variant])).from_pipe(pipe)
    if kind:
        for network in pipe.components.values():
            if isinstance(network, nn.Module):
                network.to(HALVES[kind]).float()
    return pipe


def controlnet(unet: UNet2DConditionModel, **config: Any) -> ControlNetModel:
    """A ControlNet for a UNet, the same at every call; its zero convolutions are not zero."""
    torch.manual_seed(1)
    made = ControlNetModel.from_unet(unet, load_weights_from_unet=False, **config)
    return randomised(made)


@torch.no_grad()
def randomised(module: nn.Module) -> nn.Module:
    """Norms around one, biases and what is zero around zero, no two alike."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.1 * torch.randn_like(parameter))
        elif not parameter.any():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return module.eval()


def _unet(**config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(sample_size=SAMPLE_SIZE, layers_per_block=2, **config)


def _vae(scale: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 32, 32),
        layers_per_block=2,
        norm_num_groups=8,
        sample_size=8 * SAMPLE_SIZE,
        scaling_factor=scale,
    )


def _text_config(tokenizer: CLIPTokenizer, width: int, **config: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **config,
    )


def _one_encoder(
    unet: UNet2DConditionModel, width: int, scheduler: object, **text: Any
) -> StableDiffusionPipeline:
    tokenizer = build_tokenizer(vocabulary())
    return StableDiffusionPipeline(
        vae=randomised(_vae(0.18215)),
        text_encoder=randomised(CLIPTextModel(_text_config(tokenizer, width, **text))),
        tokenizer=tokenizer,
        unet=randomised(unet),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
