"""What adapter files call the modules of a bundle's networks.

Every module has its name in diffusers, and in the UNet that of the original release (`SGM`). Files
write these with dots behind a prefix, or with underscores (kohya). So a table of all names of a
bundle's own modules tells what a key stands for, and no name has to be converted by rules. Knows
module names, nothing of tensors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tessera.adapters.updates import PARTS, Unusable

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_PEFT = r"(?:base_model\.model\.)?"
_PREFIXES = (
    (re.compile(r"(?:lora_unet|lycoris)_"), "unet", "kohya"),
    (re.compile(r"lora_te1?_"), "text_encoder", "kohya"),
    (re.compile(r"lora_te2_"), "text_encoder_2", "kohya"),
    (re.compile(rf"{_PEFT}(?:model\.)?diffusion_model\."), "unet", "comfyui"),
    (
        re.compile(rf"{_PEFT}(?:text_encoders\.)?clip_l\.(?:transformer\.)?"),
        "text_encoder",
        "comfyui",
    ),
    (
        re.compile(rf"{_PEFT}(?:text_encoders\.)?clip_g\.(?:transformer\.)?"),
        "text_encoder_2",
        "comfyui",
    ),
    (re.compile(rf"{_PEFT}unet\.{_PEFT}"), "unet", "diffusers"),
    (re.compile(rf"{_PEFT}text_encoder\.{_PEFT}"), "text_encoder", "diffusers"),
    (re.compile(rf"{_PEFT}text_encoder_2\.{_PEFT}"), "text_encoder_2", "diffusers"),
    (re.compile(r"base_model\.model\."), "", "peft"),
    (re.compile(""), "", "diffusers"),
)
"""Prefix of a key, the network that it stands for (empty: any) and the layout that has it."""
_OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
"""What diffusers called the text encoders' projections before it used PEFT."""
_TEXT_MODEL = "text_model."
"""Prefix in older transformers and in files made with them; newer versions omit it."""


@dataclass(frozen=True)
class Found:
    """What a file's key stands for.

    Attributes:
        part: the network.
        module: the module's name in the network.
        layout: `kohya`, `comfyui`, `diffusers` or `peft`.
    """

    part: str
    module: str
    layout: str


class Names:
    """The names of a bundle's modules in files.

    Args:
        modules: names of the modules by network.
        family: title of the bundle's variant, for errors.
    """

    def __init__(self, modules: Mapping[str, Collection[str]], family: str) -> None:
        self._family = family
        self._tables = {part: _table(part, names) for part, names in modules.items()}
        self._kohya = {
            part: _unique((alias.replace(".", "_"), name) for alias, name in table.items())
            for part, table in self._tables.items()
        }

    def find(self, path: str) -> Found | None:
        """The module that a path stands for; `None` if the networks have none of this name.

        Args:
            path: a key without the end that says which tensor of the module it is.

        Raises:
            Unusable: it is of a network that the bundle does not have.
        """
        for pattern, part, layout in _PREFIXES:
            match = pattern.match(path)
            if match is None:
                continue
            if part and part not in self._tables:
                raise Unusable(f"changes the network {part}, which {self._family} does not have")
            rest = path[match.end() :].replace(".processor.", ".")
            for candidate in (part,) if part else self._parts_of_bare_names():
                tables = self._kohya if layout == "kohya" else self._tables
                if module := tables[candidate].get(rest):
                    return Found(candidate, module, layout)
        return None

    def _parts_of_bare_names(self) -> Iterable[str]:
        """Networks that a name without a prefix may be of. With two text encoders it could be of
        either.
        """
        text = [part for part in PARTS[1:] if part in self._tables]
        return ("unet", *text) if len(text) == 1 else ("unet",)


def original_names(modules: Collection[str]) -> dict[str, str]:
    """Names of a UNet's modules in the original release (openaimodel.py), by their names in
    diffusers.
    """
    counts: dict[str, int] = {}
    for name in modules:
        if match := re.match(r"((?:down|up)_blocks\.\d+\.\w+)\.(\d+)\.", name):
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    starts = {"down": 1, "up": 0}
    places: dict[str, str] = {}
    for side, start in starts.items():
        for block in range(len({key.split(".")[1] for key in counts if key.startswith(side)})):
            stem = f"{side}_blocks.{block}"
            resnets = counts.get(f"{stem}.resnets", 0)
            attends = f"{stem}.attentions" in counts
            side_name = "input_blocks" if side == "down" else "output_blocks"
            for i in range(resnets):
                places[f"{stem}.resnets.{i}"] = f"{side_name}.{start + i}.0"
                places[f"{stem}.attentions.{i}"] = f"{side_name}.{start + i}.1"
            start += resnets
            if side == "down" and f"{stem}.downsamplers" in counts:
                places[f"{stem}.downsamplers.0.conv"] = f"{side_name}.{start}.0.op"
                start += 1
            last = f"{side_name}.{start - 1}.{1 + attends}.conv"
            places[f"{stem}.upsamplers.0.conv"] = last
    return {n: original for n in modules if (original := _original(n, places))}


def _original(name: str, places: Mapping[str, str]) -> str | None:
    if name in _ENDS or name in places:
        return _ENDS.get(name) or places[name]
    match = re.match(r"(.+?\.(resnets|attentions)\.(\d+))(?:\.(.+))?$", name)
    if match is None:
        return None
    stem, kind, index, inner = match.groups()
    if stem.startswith("mid_block."):
        place: str | None = f"middle_block.{2 * int(index) + (kind == 'attentions')}"
    else:
        place = places.get(stem)
    inner = _RESNET.get(inner, "") if kind == "resnets" else inner
    return f"{place}.{inner}" if place and inner else None


def _table(part: str, modules: Collection[str]) -> dict[str, str]:
    """Names with dots -> the module's name in diffusers."""
    aliases = [(name, name) for name in modules]
    if part == "unet":
        aliases += [(original, name) for name, original in original_names(modules).items()]
        both = list(aliases)
        aliases += [(a.removesuffix(".0"), n) for a, n in both if n.endswith(".to_out.0")]
        return _unique(aliases)
    for name in modules:
        bare = name.removeprefix(_TEXT_MODEL)
        stem, _, leaf = bare.rpartition(".")
        old = [f"{stem}.{_OLD_TEXT[leaf]}"] if leaf in _OLD_TEXT else []
        for alias in (bare, *old):
            aliases += [(alias, name), (f"{_TEXT_MODEL}{alias}", name)]
    return _unique(aliases)


def _unique(aliases: Iterable[tuple[str, str]]) -> dict[str, str]:
    """A table without names that stand for two modules."""
    table: dict[str, str] = {}
    ambiguous = set()
    for alias, name in aliases:
        if table.setdefault(alias, name) != name:
            ambiguous.add(alias)
    return {alias: name for alias, name in table.items() if alias not in ambiguous}
