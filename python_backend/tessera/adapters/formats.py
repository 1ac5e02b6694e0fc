"""Parses an adapter file into updates by the name of the weight that they change.

Accepts safetensors in the layouts of kohya's scripts, LyCORIS, diffusers, PEFT, ComfyUI and
OneTrainer. `names` says which module a key is of, `kinds` what its tensors do. Every tensor is part
of an update or skipped by a named rule. Otherwise the file is rejected.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from tessera.adapters.kinds import NUMBERS, Module, Scale, split
from tessera.adapters.library import PEFT_CONFIG, PEFT_MODEL
from tessera.adapters.names import Found
from tessera.adapters.peft_fields import check_fields
from tessera.adapters.targets import Targets, Updates
from tessera.adapters.updates import PARTS, Unusable
from tessera.networks.leftovers import left_behind
from tessera.types import Tensors

MAX_BYTES = 4 * 2**30
"""Largest file that is read."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SMALL = (torch.float8_e4m3fn, torch.float8_e5m2)
"""Types whose values float16 has, too."""
_OTHERS = {
    r"\.oft_|\.boft_": "an OFT (orthogonal transforms)",
    r"\.vera_lambda_": "a VeRA",
    r"\.lora_E$": "an AdaLoRA",
    r"\.fourierft_spectrum": "a FourierFT",
    r"\.hra_u$": "an HRA (Householder reflections)",
    r"^lllite_": "a ControlNet-LLLite",
    r"^(?:adapter\.)?body\.\d+\.": "a T2I-Adapter",
    r"^(?:image_proj|ip_adapter)\.": "an IP-Adapter",
    r"^(?:control_model\.|controlnet_|input_hint_block\.)": (
        "a ControlNet (tessera-build takes it with --controlnet)"
    ),
    r"\.[ab][12]\.weight$": "a GLoRA",
    r"^emb_params$|string_to_param|^clip_[lg]$|^<.*>$": "an embedding (textual inversion)",
    r"lora_controlnet": "a Control-LoRA",
    r"^transformer\.|^lora_transformer_|double_blocks|single_blocks|joint_blocks|"
    r"lora_te3_": ("a LoRA of a diffusion transformer (Stable Diffusion 3, Flux ...)"),
}
"""Pattern of a key -> the kind of file that has such keys."""
_WHOLE = re.compile(
    r"(?:first_stage_model|cond_stage_model|conditioner)\..+"
    r"|(?:model\.diffusion_model\.)?(?:conv_in|input_blocks\.0\.0)\.bias"
)
"""Keys of checkpoints and of their UNets."""
_SKIPPED = {r"^bundle_emb\.": "bundled embeddings (bundle_emb)"}
"""Pattern of a key -> the rule by which it is skipped."""
_ALPHAS = "alphas of full differences"


@dataclass(frozen=True)
class ParsedAdapter:
    """A parsed adapter file that fits a bundle.

    Attributes:
        layout: `kohya`, `diffusers`, `peft` or `comfyui`.
        digest: first 16 hexadecimal digits of the SHA-256 of the file, and of PEFT's configuration
            beside it.
        updates: updates by part (`unet` ...) and name of the weight (`mid_block...to_q.weight`).
        skipped: rules by which tensors were skipped, each with their number.
    """

    layout: str
    digest: str
    updates: Updates
    skipped: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of adapter that the file has, sorted."""
        all_updates = (u for part in self.updates.values() for u in part.values())
        return tuple(sorted({kind for update in all_updates for kind in update.kinds}))


def read_adapter(path: Path, targets: Targets) -> ParsedAdapter:
    """Parse an adapter file.

    Args:
        path: the file.
        targets: the weights of the bundle's networks.

    Raises:
        Unusable: the file is too large, is not a complete safetensors file, is not an adapter of a
            known layout and kind, does not fit the networks, or has values that are not finite.
    """
    content, beside = _read(path), _config_beside(path)
    everything = _tensors(content)
    metadata = _peft_configuration(beside) if beside else _configuration(content)
    check_fields(metadata)
    skipped = Counter(rule for key in everything if (rule := _rule(key)))
    tensors = {key: tensor for key, tensor in everything.items() if not _rule(key)}
    if any(_WHOLE.fullmatch(key) for key in tensors):
        raise Unusable("is a checkpoint, or a network of one; accepted: LoRA and its kinds")
    for pattern, kind in _OTHERS.items():
        if any(re.search(pattern, key) for key in tensors):
            raise Unusable(f"is {kind}; accepted: LoRA, DoRA, LoHa, LoKr, (IA)3 and differences")
    found, modules = _modules(tensors, targets, metadata)
    updates: Updates = {}
    for place, module in modules.items():
        for leaf, update in module.read().items():
            updates.setdefault(place.part, {})[f"{place.module}.{leaf}"] = update
        skipped[_ALPHAS] += len(module.tensors)
    if not updates:
        raise Unusable(f"changes nothing: it has {_counted(skipped)} only")
    digest = hashlib.sha256(content + beside).hexdigest()[:16]
    return ParsedAdapter(_layout(found, tensors), digest, updates, _lines(skipped))


def _modules(
    tensors: Tensors, targets: Targets, metadata: Mapping[str, Any]
) -> tuple[list[Found], dict[Found, Module]]:
    """The tensors by the module that they are of."""
    layouts, modules = [], dict[Found, Module]()
    unknown = []
    for key, tensor in sorted(tensors.items()):
        path, role = split(key) or _no_adapter(key)
        place = targets.names.find(path)
        if place is None:
            unknown.append(key)
            continue
        layouts.append(place)
        place = Found(place.part, place.module, "")
        if place not in modules:
            name = f"{place.part}.{place.module}"
            shapes = targets.leaves(place.part, place.module)
            scale = _scale(place.part, place.module, metadata)
            modules[place] = Module(name, shapes, targets.family, scale)
        if role in modules[place].tensors:
            raise Unusable(f"has two keys that stand for {modules[place].name}, one is {key}")
        modules[place].tensors[role] = _checked(key, role, tensor)
    if unknown:
        raise Unusable(
            f"has {len(unknown)} of {len(tensors)} keys for modules that {targets.family} does not "
            f"have, first {unknown[0]}"
        )
    return layouts, modules


def _no_adapter(key: str) -> tuple[str, str]:
    raise Unusable(
        f"has the key {key}; accepted: keys of kohya, LyCORIS, diffusers, PEFT, ComfyUI and "
        "OneTrainer"
    )


def _rule(key: str) -> str:
    """The rule by which a key is skipped; empty if it is not."""
    return next((rule for pattern, rule in _SKIPPED.items() if re.search(pattern, key)), "")


def _lines(skipped: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(f"{count} {rule}" for rule, count in sorted(skipped.items()) if count)


def _counted(skipped: Mapping[str, int]) -> str:
    return " and ".join(_lines(skipped)) or "no tensors"


def _layout(found: Iterable[Found], tensors: Tensors) -> str:
    """The layout that most keys have."""
    layout = Counter(place.layout for place in found).most_common(1)[0][0]
    peft = layout == "diffusers" and any(".lora_A." in key for key in tensors)
    return "peft" if peft else layout


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


def _config_beside(path: Path) -> bytes:
    """PEFT's configuration file beside its file of weights; empty if there is none."""
    config = path.with_name(PEFT_CONFIG)
    if path.name != PEFT_MODEL or not config.is_file():
        return b""
    return _read(config)


def _peft_configuration(content: bytes) -> dict[str, Any]:
    """The same fields for every part. LoHa and LoKr call their alpha `alpha`."""
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise Unusable(f"has a file {PEFT_CONFIG} beside it that is not a JSON object")
    if config.get("lora_alpha") is None and config.get("alpha") is not None:
        config["lora_alpha"] = config["alpha"]
    given = {key: value for key, value in config.items() if value is not None}
    return {f"{part}.{key}": value for part in PARTS for key, value in given.items()}


def _tensors(content: bytes) -> Tensors:
    if content[8:9] != b"{":
        raise Unusable(f"is {left_behind(content) or 'not a safetensors file'}")
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
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise Unusable("has lora_adapter_metadata that is not a JSON object")
    return config


def _checked(key: str, role: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with finite values, in a type that can be computed with."""
    if role in NUMBERS:
        if tensor.numel() != 1:
            raise Unusable(f"has {tensor.numel()} values in {key}; accepted: one")
        tensor = tensor.reshape(()).double()
    elif tensor.dtype in _SMALL:
        tensor = tensor.to(torch.float16)
    elif tensor.dtype not in _DTYPES:
        kind = str(tensor.dtype).removeprefix("torch.")
        accepted = "float8_e4m3fn, float8_e5m2, float16, bfloat16 and float32"
        raise Unusable(f"has {key} in {kind}; accepted: {accepted}")
    if not torch.isfinite(tensor).all():
        raise Unusable(f"has NaN or infinite values in {key}")
    return tensor


def _scale(part: str, module: str, metadata: Mapping[str, Any]) -> Scale:
    """Rank -> alpha / rank by PEFT's configuration, else 1."""
    config = {
        k.removeprefix(f"{part}."): v for k, v in metadata.items() if k.startswith(f"{part}.")
    }
    if "lora_alpha" not in config:
        return lambda rank: 1.0
    alpha = _of_module("alpha", config["lora_alpha"], config, module)
    root = math.sqrt if config.get("use_rslora") else float

    def scale(rank: int | None) -> float:
        if rank is None and "r" not in config:
            return 1.0
        return alpha / root(rank or _of_module("rank", config["r"], config, module))

    return scale


def _of_module(what: str, general: object, config: Mapping[str, Any], module: str) -> float:
    """The alpha or the rank of a module: that of the first pattern that matches it, or else of all
    modules.
    """
    given = dict(config.get(f"{what}_pattern") or {})
    patterns = {key: _number(what, value) for key, value in given.items()}
    if not all(re.fullmatch(r"\^?[\w.]+", pattern) for pattern in patterns):
        raise Unusable(f"has a key in its {what}_pattern that is not a module's name")
    number = _number(what, general)
    return next((n for p, n in patterns.items() if _matches(p, module)), number)


def _matches(pattern: str, module: str) -> bool:
    """Whether a pattern that is a name matches a module, by PEFT's rules."""
    name = pattern.removeprefix("^").removeprefix("text_model.")
    return module == name or (pattern[0] != "^" and module.endswith(f".{name}"))


def _number(what: str, value: object) -> float:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    raise Unusable(f"has the {what} {value!r} in its metadata; accepted: a finite number")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


__all__ = ["MAX_BYTES", "PARTS", "ParsedAdapter", "Unusable", "read_adapter"]
