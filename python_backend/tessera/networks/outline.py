"""A network's structure as a bundle keeps it, beside the network's `config.json`.

To find it out takes diffusers' and transformers' classes, whose import alone costs 2 s of CPU time
in every process. The builder has them at hand. Standard library only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tessera.networks.program import Program

OUTLINE = "outline.json"
UNET_HALVES = {
    "unet_encoder": (
        "conv_in",
        "time_proj",
        "time_embedding",
        "add_time_proj",
        "add_embedding",
        "down_blocks",
        "mid_block",
    ),
    "unet_decoder": ("up_blocks", "conv_norm_out", "conv_act", "conv_out"),
}
"""The children of a UNet that each half has."""


@dataclass(frozen=True)
class Outline:
    """What is read off a network without running it.

    Attributes:
        weights: shapes of the weights of linear layers and convolutions, by name, in the order of
            the network's modules.
        others: shapes of its biases, norms and embeddings, by name.
        program: of a UNet.
    """

    weights: dict[str, tuple[int, ...]]
    others: dict[str, tuple[int, ...]]
    program: Program | None = None

    @property
    def all_weights(self) -> dict[str, tuple[int, ...]]:
        """`weights` and `others`."""
        return self.weights | self.others

    @classmethod
    def from_json(cls, text: str) -> Outline | None:
        """The inverse of `to_json`; `None` for the file of an older Tessera, which has less."""
        content = json.loads(text)
        if "others" not in content:
            return None
        weights, others = (
            {name: tuple(shape) for name, shape in content[field].items()}
            for field in ("weights", "others")
        )
        program = content["program"]
        return cls(weights, others, Program.from_dict(program) if program else None)

    def to_json(self) -> str:
        """The content of an outline's file; not sorted, since the order of weights counts."""
        program = self.program.to_dict() if self.program else None
        content = {"weights": self.weights, "others": self.others, "program": program}
        return json.dumps(content) + "\n"

    def half(self, graph: str) -> dict[str, tuple[int, ...]]:
        """The weights of a UNet's half, `unet_encoder` or `unet_decoder`."""
        parts = UNET_HALVES[graph]
        return {n: shape for n, shape in self.weights.items() if n.partition(".")[0] in parts}
