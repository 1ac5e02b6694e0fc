"""Parses an adapter file into low-rank updates by the name of the weight that they change.

Accepts safetensors in the layouts of kohya's scripts, diffusers and PEFT. Diffusers' own converters
translate key names, so that a file has the same effect as with `load_lora_weights`. Other kinds of
adapters (LoHa, LoKr, DoRA ...) are rejected by name. Knows no bundle: `targets` checks the fit.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from tessera.networks.light_diffusers import (
    DIFFUSERS_OLD_TO_PEFT,
    DIFFUSERS_TO_PEFT,
    UNET_TO_DIFFUSERS,
    convert_state_dict,
    lora_state_dict,
)
from tessera.types import Tensors

MAX_BYTES = 4 * 2**30
"""Largest file that is read."""
MAX_RANK = 512
"""Largest rank that is accepted."""

PARTS = ("unet", "text_encoder", "text_encoder_2")
"""The networks that a LoRA may change, as diffusers prefixes them."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_TEXT = DIFFUSERS_OLD_TO_PEFT | DIFFUSERS_TO_PEFT
_MAPPINGS = {"unet": UNET_TO_DIFFUSERS, "text_encoder": _TEXT, "text_encoder_2": _TEXT}
"""Old and new diffusers names -> PEFT's names, which equal the modules' names."""
_OTHERS = {
    r"\.hada_": "a LoHa (Hadamard products)",
    r"\.lokr_": "a LoKr (Kronecker products)",
    r"\.lora_mid\.": "a LoCon with a Tucker core",
    r"dora_scale|lora_magnitude_vector": "a DoRA (decomposed magnitudes)",
    r"\.oft_|\.boft_": "an OFT (orthogonal transforms)",
    r"\.on_input$": "an IA3 (scaled activations)",
    r"\.[ab][12]\.weight$": "a GLoRA",
    r"\.diff$|\.diff_b$|\.w_norm$|\.b_norm$": "a LyCORIS file with full differences",
    r"lora_embedding_|emb_params|string_to_param": "an embedding",
    r"lora_[AB]\.bias$|lora_(up|down)\.bias$": "a LoRA with biases",
    r"lora_controlnet": "a Control-LoRA",
}
"""Pattern of a key -> the kind of file that has such keys."""


class Unusable(Exception):
    """A file cannot be used as a LoRA. `str(error)` gives the reason without a subject, such as
    `is empty`.
    """


@dataclass(frozen=True)
class Update:
    """What one adapter adds to one weight: `scale * up @ down`.

    Attributes:
        down: (rank, in) for a linear layer, (rank, in, h, w) for a convolution.
        up: (out, rank) or (out, rank, 1, 1).
        scale: alpha / rank.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return int(self.down.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it changes."""
        return (int(self.up.shape[0]), *map(int, self.down.shape[1:]))

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.down.nbytes + self.up.nbytes


@dataclass(frozen=True)
class ParsedAdapter:
    """A parsed adapter file.

    Attributes:
        layout: `kohya`, `diffusers` or `peft`.
        digest: first 16 hexadecimal digits of the file's SHA-256.
        updates: updates by part (`unet` ...) and name of the weight (`mid_block...to_q.weight`).
    """

    layout: str
    digest: str
    updates: dict[str, dict[str, Update]]


def read_adapter(path: Path, *, layers_per_block: int | None = None) -> ParsedAdapter:
    """Parse an adapter file.

    Args:
        path: the file.
        layers_per_block: from the UNet's config, for a variant whose LoRAs may use the names of the
            original SDXL code.

    Raises:
        Unusable: the file is too large, is not a complete safetensors file, is not a LoRA of a
            known layout, or has values that are not finite.
    """
    content = _read(path)
    tensors, metadata = _tensors(content), _configuration(content)
    for pattern, kind in _OTHERS.items():
        if any(re.search(pattern, key) for key in tensors):
            raise Unusable(f"is {kind}; accepted: plain LoRAs")
    _check_values(tensors)
    layout = _layout(tensors)
    try:
        state, alphas = lora_state_dict(tensors, layers_per_block=layers_per_block)
    except (ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise Unusable(f"has keys that diffusers cannot convert: {_first_line(error)}") from error
    updates = {}
    for part in PARTS:
        weights = dict(_part(part, state))
        if weights:
            updates[part] = _updates(part, weights, alphas, metadata)
    _check_complete(updates, state)
    return ParsedAdapter(layout, hashlib.sha256(content).hexdigest()[:16], updates)


def _read(path: Path) -> bytes:
    """Read the whole file. If it were mapped, overwriting it in place would crash this process."""
    try:
        if not path.is_file():
            raise Unusable("is not a regular file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise Unusable(f"has {size} bytes; accepted: at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror or error}") from error


def _tensors(content: bytes) -> Tensors:
    if content[8:9] != b"{":
        raise Unusable("is not a safetensors file")
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError) as error:
        raise Unusable(f"is damaged or ends early ({_first_line(error)})") from error
    if not tensors:
        raise Unusable("is empty")
    return tensors


def _configuration(content: bytes) -> dict[str, Any]:
    """LoraConfig fields by `part.field`, as diffusers' `save_lora_weights` writes them."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise Unusable("has lora_adapter_metadata that is not a JSON object")
    return config


def _check_values(tensors: Tensors) -> None:
    for key, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise Unusable(f"has {key} in {kind}; accepted: float16, bfloat16 and float32")
        if not torch.isfinite(tensor).all():
            raise Unusable(f"has NaN or infinite values in {key}")


def _layout(tensors: Tensors) -> str:
    if all(key.startswith(_KOHYA) for key in tensors):
        return "kohya"
    known = tuple(f"{part}." for part in PARTS)
    stray = next((k for k in tensors if not k.startswith(known) or "lora" not in k), None)
    if stray is not None:
        raise Unusable(f"has the key {stray}; accepted: keys of kohya, diffusers or PEFT")
    return "peft" if any(".lora_A." in key for key in tensors) else "diffusers"


def _part(part: str, state: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """One network's tensors, named `module.lora_A.weight` and `module.lora_B.weight`."""
    tensors = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
    yield from convert_state_dict(tensors, _MAPPINGS[part]).items()


def _updates(
    part: str, weights: Tensors, alphas: Mapping[str, float], metadata: Mapping[str, Any]
) -> dict[str, Update]:
    scale_of = _scales(part, alphas, metadata)
    updates = {}
    for key, down in weights.items():
        if not key.endswith(".lora_A.weight"):
            continue
        module = key.removesuffix(".lora_A.weight")
        up = weights.get(f"{module}.lora_B.weight")
        if up is None:
            raise Unusable(f"lacks the second half of {part}.{module}")
        _check_pair(f"{part}.{module}", down, up)
        scale = scale_of(module, int(down.shape[0]))
        updates[f"{module}.weight"] = Update(down.contiguous(), up.contiguous(), scale)
    return updates


def _check_pair(name: str, down: torch.Tensor, up: torch.Tensor) -> None:
    fits = (
        down.ndim == up.ndim
        and down.ndim in (2, 4)
        and up.shape[1] == down.shape[0] > 0
        and set(up.shape[2:]) <= {1}
    )
    if not fits:
        raise Unusable(
            f"has halves of shapes {tuple(down.shape)} and {tuple(up.shape)} for {name}, "
            "which do not form a low-rank product"
        )
    if down.shape[0] > MAX_RANK:
        raise Unusable(f"has rank {down.shape[0]} at {name}; accepted: at most {MAX_RANK}")


def _scales(
    part: str, alphas: Mapping[str, float], metadata: Mapping[str, Any]
) -> Callable[[str, int], float]:
    """(module, rank) -> alpha / rank, by kohya's alphas or PEFT's configuration, else 1."""
    of_part = {k.removeprefix(f"{part}."): v for k, v in alphas.items() if k.startswith(f"{part}.")}
    if of_part:
        by_module = {_module_of_alpha(part, key): alpha for key, alpha in of_part.items()}
        return lambda module, rank: by_module.get(module, float(rank)) / rank
    config = {
        k.removeprefix(f"{part}."): v for k, v in metadata.items() if k.startswith(f"{part}.")
    }
    if "lora_alpha" not in config:
        return lambda module, rank: 1.0
    default = _number(config["lora_alpha"])
    patterns = {k: _number(v) for k, v in dict(config.get("alpha_pattern") or {}).items()}
    if not all(re.fullmatch(r"\^?[\w.]+", pattern) for pattern in patterns):
        raise Unusable("has an alpha_pattern in its metadata that is not a module's name")
    root = math.sqrt if config.get("use_rslora") else float

    def scale(module: str, rank: int) -> float:
        of_module = (a for p, a in patterns.items() if _matches(p, module))
        return next(of_module, default) / root(rank)

    return scale


def _matches(pattern: str, module: str) -> bool:
    """Whether a pattern that is a name matches a module, by PEFT's rules."""
    name = pattern.removeprefix("^")
    return module == name or (name == pattern and module.endswith(f".{name}"))


def _number(value: object) -> float:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    raise Unusable(f"has the alpha {value!r} in its metadata; accepted: a finite number")


def _module_of_alpha(part: str, key: str) -> str:
    """The module of a converted alpha. Diffusers has two ways to name it."""
    name = key.removesuffix(".alpha")
    down = {"unet": ".lora.down.weight"}.get(part, ".lora_linear_layer.down.weight")
    name = name if name.endswith(".weight") else f"{name}{down}"
    (converted,) = convert_state_dict({name: None}, _MAPPINGS[part])
    return str(converted).partition(".lora_A")[0]


def _check_complete(updates: Mapping[str, Mapping[str, Update]], state: Tensors) -> None:
    """Check that every tensor is part of an update."""
    used = 2 * sum(len(part) for part in updates.values())
    if used != len(state):
        raise Unusable(f"has {len(state)} tensors, of which only {used} form pairs")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
