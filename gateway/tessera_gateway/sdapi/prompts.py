"""LoRAs in prompts: `<lora:name:weight>`, as stable-diffusion-webui writes them."""

from __future__ import annotations

import math
import re

from tessera.errors import brief
from tessera_client import Lora
from tessera_gateway.errors import unfit

_TAG = re.compile(r"<(\w+):([^<>]+)>")
_LORAS = ("lora", "lyco")


def read_prompt(prompt: str) -> tuple[str, list[Lora]]:
    """A prompt without its tags, and the LoRAs in them.

    `<lora:name>`, `<lora:name:weight>`, `<lora:name:text weight:weight>`, or with `te=` and
    `unet=`. Tags of other kinds are taken out, too: webui does so with kinds that it does not know.

    Raises:
        ApiError: a weight is no number.
    """
    loras = [_lora(match) for match in _TAG.finditer(prompt) if match[1] in _LORAS]
    if not _TAG.search(prompt):
        return prompt, []
    return re.sub(r" {2,}", " ", _TAG.sub("", prompt)).strip(" ,"), loras


def _lora(match: re.Match[str]) -> Lora:
    name, *rest = match[2].split(":")
    named = dict(part.split("=", 1) for part in rest if "=" in part)
    positional = [part for part in rest if "=" not in part]
    text = _weight(match[0], named.get("te", positional[0] if positional else "1"))
    weight = text
    if "unet" in named or len(positional) > 1:
        weight = _weight(match[0], named["unet"] if "unet" in named else positional[1])
    return Lora(name, weight, None if text == weight else text)


def _weight(tag: str, value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise unfit("prompt", f"has {brief(tag)}", "<lora:name:weight>, the weight a number")
    return weight
