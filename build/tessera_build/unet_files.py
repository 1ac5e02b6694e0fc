"""Single files of other forms: with a UNet alone, or a text encoder in NovelAI's names."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import fetch_diffusers_config
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel

from tessera.adapters.names import original_names
from tessera.errors import BundleError
from tessera_build.markers import MARKERS

_TEXT = "cond_stage_model.transformer."
BARE_TEXT = f"{_TEXT}embeddings.token_embedding.weight"
"""A tensor of NovelAI's files and of what was merged from them: others have `text_model.` in it."""
_UNET = "model.diffusion_model."


def holds_unet_alone(names: Collection[str]) -> bool:
    """Whether the tensors of a file are those of a UNet and nothing else."""
    first = ("input_blocks.0.0.weight", "conv_in.weight")
    bare = {name.removeprefix(_UNET) for name in names}
    others = ("first_stage_model.", "cond_stage_model.", "conditioner.")
    return not bare.isdisjoint(first) and not any(name.startswith(others) for name in names)


def replace_unet(pipe: DiffusionPipeline, path: Path) -> None:
    """Replace the weights of a pipeline's UNet by those of a file.

    The file may have names of the original release, with or without the prefix of a checkpoint, or
    those of diffusers. Other tensors behind another prefix are left out.

    Raises:
        BundleError: it has no UNet, or one of another structure.
        SafetensorError, OSError: it cannot be read.
    """
    expected = pipe.unet.state_dict()
    originals = original_names({name.rpartition(".")[0] for name in expected})
    state, used = {}, set[str]()
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        prefix = _UNET if any(key.startswith(_UNET) for key in keys) else ""
        held = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
        for name, weight in expected.items():
            stem, _, leaf = name.rpartition(".")
            found = name if name in held else f"{originals.get(stem)}.{leaf}"
            if found not in held:
                raise BundleError(f"{path} lacks {name} of the base's UNet")
            used.add(found)
            tensor = file.get_tensor(held[found])
            if tensor.shape != weight.shape:
                raise BundleError(
                    f"{path} has another UNet than the base: {name} has shape "
                    f"{tuple(tensor.shape)}; accepted: {tuple(weight.shape)}"
                )
            state[name] = tensor.to(weight.dtype)
    left = sorted(set(held) - used - MARKERS)
    if left:
        raise BundleError(
            f"{path} has {len(left)} tensors that the base's UNet does not have, first {left[0]}"
        )
    pipe.unet.load_state_dict(state, assign=True)


def bare_text_encoder(path: Path, config: str | None, dtype: torch.dtype) -> CLIPTextModel:
    """The text encoder of a file that has `BARE_TEXT`.

    Args:
        path: the file.
        config: a diffusers folder; by default the hub's for such a file.
        dtype: type of its weights.

    Raises:
        BundleError: it lacks tensors of a text encoder.
        SafetensorError, OSError: it, or its configuration, cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        source = (
            config
            or fetch_diffusers_config(dict.fromkeys(file.keys()))["pretrained_model_name_or_path"]
        )
        with init_empty_weights():
            encoder = CLIPTextModel(
                CLIPTextConfig.from_pretrained(source, subfolder="text_encoder")
            )
        missing = sorted(n for n in encoder.state_dict() if f"{_TEXT}{n}" not in file.keys())  # noqa: SIM118
        if missing:
            raise BundleError(
                f"{path} lacks {len(missing)} tensors of its text encoder, first {missing[0]}"
            )
        state = {n: file.get_tensor(f"{_TEXT}{n}").to(dtype) for n in encoder.state_dict()}
    encoder.load_state_dict(state, assign=True)
    # Positions are a buffer that no file has to hold.
    positions = torch.arange(encoder.config.max_position_embeddings)[None]
    encoder.embeddings.register_buffer("position_ids", positions, persistent=False)
    return encoder.eval()
