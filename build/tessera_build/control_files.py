"""Single safetensors files with a ControlNet: what kind each is, its configuration, its weights.

A file holds weights only. Their names and shapes say how large the ControlNet is. Names are those
of diffusers or of the original release. A Control-LoRA has low-rank updates of the UNet's encoder
half, from which its ControlNet is made.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from safetensors import safe_open
from torch import nn

from tessera.errors import BundleError

_KINDS = {
    r"^lllite_": "a ControlNet-LLLite",
    r"^(adapter\.)?body\.\d+\.": "a T2I-Adapter",
    r"^(image_proj|ip_adapter)\.": "an IP-Adapter",
    r"^(lora_unet_|lora_te|unet\..*\.lora)": "a LoRA, which --lora takes",
    r"(double_blocks|joint_blocks|transformer_blocks\.\d+\.norm1\.linear)": (
        "a ControlNet of a diffusion transformer"
    ),
}
"""Pattern of a tensor's name -> the kind of file that has it, and that is not accepted."""
_PREFIX = "control_model."
_MARKER = "lora_controlnet"
"""An empty tensor of Control-LoRAs."""
_UNION = re.compile(r"^(task_embedding$|spatial_ch_projs\.|control_add_embedding\.)")
_ORIGINAL = re.compile(r"^(input_hint_block|zero_convs|input_blocks)\.")
"""Names of the original release."""
_LABELS = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
"""Names of SDXL's that diffusers' converter does not know."""
_HINT = "controlnet_cond_embedding.conv_in.weight"


@dataclass(frozen=True)
class ControlFile:
    """A file with a ControlNet.

    Attributes:
        path: of the file.
        names: names of its tensors by diffusers' name. A low-rank update has the name of the
            weight that it changes.
        shapes: shapes of its tensors.
        union: whether it is a ControlNet-Union.
        lora: whether it is a Control-LoRA.
    """

    path: Path
    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    union: bool
    lora: bool

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a weight, by diffusers' name.

        Raises:
            KeyError: the file does not have it.
        """
        return self.shapes[self.names[name]]


def read_file(name: str, path: Path, layers: int) -> ControlFile:
    """Find out what a file is.

    Args:
        name: the ControlNet's, for errors.
        path: the file.
        layers: the UNet's `layers_per_block`.

    Raises:
        BundleError: it is no ControlNet, or one for images of other than three channels.
        SafetensorError, OSError: it cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    for pattern, kind in _KINDS.items():
        if any(re.search(pattern, tensor) for tensor in shapes):
            raise BundleError(f"ControlNet {name} is {kind}; accepted: ControlNets")
    own = [key for key in shapes if key.startswith(_PREFIX)] or [k for k in shapes if k != _MARKER]
    names = _names(own, layers)
    union = any(_UNION.match(key) for key in names)
    found = ControlFile(path, names, shapes, union, _MARKER in shapes)
    if _HINT in names and found.shape(_HINT)[1] != 3:
        channels = found.shape(_HINT)[1]
        raise BundleError(f"ControlNet {name} takes images of {channels} channels; accepted: 3")
    return found


def config_of(name: str, file: ControlFile) -> dict[str, Any]:
    """What a file says of its ControlNet's configuration, beside what follows from the UNet's.

    Raises:
        BundleError: it lacks tensors that every ControlNet has.
    """
    try:
        hints = _hint_widths(file)
        if file.lora:  # as large as the UNet
            return {"conditioning_embedding_out_channels": hints}
        blocks = range(_count(file.names, r"down_blocks\.(\d+)\."))
        depths = [_count(file.names, _layers(f"down_blocks.{i}")) for i in blocks]
        config = {
            "conditioning_embedding_out_channels": hints,
            "block_out_channels": [
                file.shape(f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in blocks
            ],
            "layers_per_block": _count(file.names, r"down_blocks\.0\.resnets\.(\d+)\."),
            "down_block_types": ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths],
        }
        middle = _count(file.names, _layers("mid_block"))
        if not file.union:
            config["mid_block_type"] = "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D"
        layers = [depth or 1 for depth in depths]
        layers[-1] = depths[-1] or middle or 1
        config["transformer_layers_per_block"] = layers
        if file.union:
            config |= _union_config(file)
    except (KeyError, IndexError) as error:
        missing = error.args[0]
        raise BundleError(
            f"ControlNet {name} lacks tensors of a ControlNet, first {missing}"
        ) from (error)
    return config


def load_file(
    name: str, file: ControlFile, network: nn.Module, unet: nn.Module, dtype: torch.dtype
) -> None:
    """Fill a ControlNet whose weights are on the meta device.

    Args:
        name: the ControlNet's, for errors.
        file: the file.
        network: the ControlNet.
        unet: the checkpoint's, which a Control-LoRA changes.
        dtype: type of the weights.

    Raises:
        BundleError: the file has other tensors than the ControlNet.
        SafetensorError, OSError: it cannot be read.
    """
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    base = unet.state_dict() if file.lora else {}
    _check_names(name, file.names, expected, base)
    state = {}
    with safe_open(file.path, framework="pt") as tensors:
        for key, shape in expected.items():
            weight = _weight(file, tensors, key, base)
            if tuple(weight.shape) != shape:
                raise BundleError(
                    f"ControlNet {name} is of another size than the checkpoint: {key} has shape "
                    f"{tuple(weight.shape)}; accepted: {shape}"
                )
            state[key] = weight.to(dtype)
    network.load_state_dict(state, assign=True)


def _names(keys: Iterable[str], layers: int) -> dict[str, str]:
    """Names of a file's tensors by diffusers' name."""
    bare = {_weight_name(key.removeprefix(_PREFIX)): key for key in keys}
    if not any(_ORIGINAL.match(key) for key in bare):
        return bare
    # The converter moves whatever it is given from name to name: here the names themselves.
    given = {f"{_PREFIX}{key}": key for key in bare}
    found = convert_controlnet_checkpoint(given, {"layers_per_block": layers})
    names = {new: bare[old] for new, old in found.items() if old is not None}
    for new, old in _LABELS.items():
        names |= {
            f"{new}.{e}": bare[f"{old}.{e}"] for e in ("weight", "bias") if f"{old}.{e}" in bare
        }
    left = set(bare.values()) - set(names.values())
    return names | {key: key for key in left}


def _weight_name(key: str) -> str:
    """The weight that a tensor is, or is a half of the update of."""
    stem, _, end = key.rpartition(".")
    return f"{stem}.weight" if end in ("up", "down") else key


def _weight(
    file: ControlFile, tensors: Any, key: str, base: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """A weight of the ControlNet."""
    if key not in file.names:
        return base[key]
    name = file.names[key]
    stem, _, end = name.rpartition(".")
    if end not in ("up", "down"):
        tensor: torch.Tensor = tensors.get_tensor(name)
        return tensor
    up, down = (tensors.get_tensor(f"{stem}.{half}").float().flatten(1) for half in ("up", "down"))
    return base[key].float() + (up @ down).reshape(base[key].shape)


def _check_names(
    name: str, names: Collection[str], expected: Collection[str], base: Collection[str]
) -> None:
    if unknown := sorted(set(names) - set(expected)):
        raise BundleError(
            f"ControlNet {name} has {len(unknown)} tensors that a ControlNet for this checkpoint "
            f"does not have, first {unknown[0]}"
        )
    if missing := sorted(set(expected) - set(names) - set(base)):
        raise BundleError(
            f"ControlNet {name} lacks {len(missing)} of {len(expected)} tensors of a ControlNet "
            f"for this checkpoint, first {missing[0]}"
        )


def _hint_widths(file: ControlFile) -> list[int]:
    """Widths of the levels of the hint's network."""
    count = _count(file.names, r"controlnet_cond_embedding\.blocks\.(\d+)\.")
    stem = "controlnet_cond_embedding.blocks"
    steps = [file.shape(f"{stem}.{i}.weight")[0] for i in range(1, count, 2)]
    return [file.shape(_HINT)[0], *steps]


def _union_config(file: ControlFile) -> dict[str, int]:
    modes, width = file.shape("task_embedding")
    return {
        "num_control_type": modes,
        "num_trans_channel": width,
        "num_trans_layer": _count(file.names, r"transformer_layes\.(\d+)\."),
        "num_proj_channel": file.shape("spatial_ch_projs.weight")[0],
    }


def _layers(block: str) -> str:
    return rf"{re.escape(block)}\.attentions\.0\.transformer_blocks\.(\d+)\."


def _count(names: Iterable[str], pattern: str) -> int:
    """How many numbers from 0 on names have at a place."""
    return len({found[1] for name in names if (found := re.match(pattern, name))})
