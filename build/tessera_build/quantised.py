"""Checkpoints whose weights are not what they seem: with scales, tables or codes beside them.

Diffusers leaves such tensors out of a single file without a word, and what remains draws noise.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tessera.errors import BundleError

_BESIDE = {
    r"\.(scale_weight|scale_input|weight_scale|input_scale)$|^(.+\.)?scaled_fp8$": (
        "float8 with scales"
    ),
    r"\.(absmax|nested_absmax|quant_map|nested_quant_map|SCB)$|\.quant_state\.": "bitsandbytes",
    r"\.(qweight|qzeros|g_idx)$": "GPTQ or AWQ",
    r"\.(wscales|smooth_factor|smooth_factor_orig)$": "SVDQuant",
    r"\.comfy_quant$": "ComfyUI",
}
"""Pattern of a tensor's name -> who writes it beside a weight."""
_CODES = ("I8", "U8", "F4", "F8_E8M0")
"""Types in which a weight is a code, not a number."""
_ACCEPTED = "weights in float32, float16, bfloat16 or plain float8"


def refuse_quantised(path: Path) -> None:
    """Look for quantised weights.

    Args:
        path: a single file, or a diffusers folder.

    Raises:
        BundleError: there are some; the message says by whom.
    """
    for config in sorted(path.glob("*/config.json")):
        if '"quantization_config"' in config.read_text(errors="replace"):
            kind = json.loads(config.read_text()).get("quantization_config") or {}
            method = kind.get("quant_method") or kind.get("quant_type") or "a configuration"
            raise BundleError(f"{config} says quantised by {method}; accepted: {_ACCEPTED}")
    for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
        _check(file)


def _check(file: Path) -> None:
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            types = {n: str(opened.get_slice(n).get_dtype()) for n in names if n.endswith("weight")}
    except (SafetensorError, OSError):
        return  # whoever opens the checkpoint says what is wrong
    for pattern, writer in _BESIDE.items():
        found = [name for name in names if re.search(pattern, name)]
        if found:
            raise BundleError(
                f"{file} has quantised weights ({writer}), first {found[0]}; accepted: {_ACCEPTED}"
            )
    codes = [name for name, kind in types.items() if kind in _CODES]
    if codes:
        raise BundleError(
            f"{file} has {codes[0]} in {types[codes[0]]}, a quantised weight; accepted: {_ACCEPTED}"
        )
