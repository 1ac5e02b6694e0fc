"""A UNet's operations in order, and its sites.

A flat list that the sparse network runs, the sites that are read off it, and what else masks and
ControlNets need to know. Only data: `networks.walk` makes it from a network, a bundle keeps it.
Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

Kind = Literal["conv", "resnet", "transformer", "push", "join", "pop", "out"]
SiteKind = Literal["halo", "key", "value", "norm", "norm_rows"]


@dataclass(frozen=True)
class Op:
    """One entry of a program.

    Attributes:
        kind: the operation. `push` puts the rows on the stack of skips, `pop` concatenates them
            with its top, `join` adds residuals to the mid block's rows.
        name: name of the module.
        level: level of the rows that come out.
        table: the index table, of a convolution outside of resnets.
    """

    kind: Kind
    name: str = ""
    level: int = 0
    table: str = ""


@dataclass(frozen=True)
class Site:
    """A place in the UNet that needs values of tokens that are not computed.

    Attributes:
        kind: `halo` (input rows of a convolution), `key`, `value` (of a self-attention), `norm`
            (statistics of a GroupNorm over all tokens), `norm_rows` (each token's share of them).
        module: name of the convolution, attention or norm.
        level: the level of its tokens.
        width: numbers per token; for `norm`, numbers in total.
        heads: heads of an attention. Its tokens are stored head by head.
        table: for a `halo`, the index table that says which rows a mask needs.
    """

    kind: SiteKind
    module: str
    level: int
    width: int
    heads: int = 1
    table: str = ""

    @cached_property
    def name(self) -> str:
        """Name of the recorded array and of the graph's input that is made from it."""
        return f"{self.kind}.{self.module}"

    def shape(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Shape of one recorded row (one timestep of one branch).

        Args:
            tokens: number of all tokens of each level.
        """
        total = tokens[self.level]
        if self.kind == "norm":
            return (2, self.width // 2)
        if self.kind == "norm_rows":
            return (total, 2, self.width // 2)
        if self.kind == "halo":
            return (total, self.width)
        return (self.heads, total, self.width // self.heads)


@dataclass(frozen=True)
class Program:
    """The operations of a UNet, as a list.

    Attributes:
        ops: its operations in order.
        paddings: of the downsamplers, one for each level but the last.
        sites: every site, in the order of the operations. The halo of `conv_in` is none: its rows
            are known without a recording.
        attentions: name and level of every transformer block.
        residuals: where ControlNets' residuals go, in the order of the UNet's skips and then its
            mid block: name of the input, level and width of the rows.
    """

    ops: tuple[Op, ...]
    paddings: tuple[int, ...]
    sites: tuple[Site, ...]
    attentions: tuple[tuple[str, int], ...]
    residuals: dict[str, tuple[int, int]]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Program:
        """The inverse of `to_dict`, through JSON or not."""
        return cls(
            ops=tuple(Op(**op) for op in content["ops"]),
            paddings=tuple(content["paddings"]),
            sites=tuple(Site(**site) for site in content["sites"]),
            attentions=tuple((name, level) for name, level in content["attentions"]),
            residuals={n: (level, width) for n, (level, width) in content["residuals"].items()},
        )

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.paddings) + 1

    @cached_property
    def norms(self) -> tuple[str, ...]:
        """Names of the GroupNorms, in the order in which the graph takes their statistics."""
        return tuple(s.module for s in self.sites if s.kind == "norm")
