"""What one adapter does to one weight, by kind of adapter.

Each kind is a formula for the difference that it makes to the checkpoint's weight. So several
adapters on a weight add up, without cross terms. Knows tensors, nothing of files or engines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch

Shape = tuple[int, ...]
PARTS = ("unet", "text_encoder", "text_encoder_2")
"""The networks that a LoRA may change, as diffusers prefixes them."""


class Unusable(Exception):
    """A file cannot be used as a LoRA. `str(error)` gives the reason without a subject, such as
    `is empty`.
    """


class Update(ABC):
    """What one adapter does to one weight.

    Attributes:
        kind: the kind of adapter.
        shape: shape of the weight that it changes.
        rank: rank of its factors as the file has them; `None` for a kind without factors.
    """

    kind: ClassVar[str]
    shape: Shape
    rank: int | None = None

    @abstractmethod
    def delta(self, base: torch.Tensor, weight: float) -> torch.Tensor:
        """What it adds to a weight.

        Args:
            base: the checkpoint's weight, in float32 or float64.
            weight: the adapter's weight in its set.

        Returns:
            A tensor of the base's shape and type.
        """

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of adapter that it is made of."""
        return (self.kind,)

    @property
    def width(self) -> int | None:
        """Rank of the update as one low-rank product; `None` if it is none."""
        return None

    def low_rank(self) -> LowRank:
        """The same as one low-rank product, if it has a `width`."""
        raise TypeError(f"{self.kind} is no low-rank product")

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def _tensors(self) -> Iterator[torch.Tensor]:
        for value in vars(self).values():
            if isinstance(value, torch.Tensor):
                yield value
            elif isinstance(value, Factors | Update):
                yield from value._tensors()


@dataclass(frozen=True, eq=False)
class LowRank(Update):
    """`weight * scale * up @ down` (Hu et al. 2021, eq. 3).

    Attributes:
        down: (rank, in) for a linear layer, (rank, in, h, w) for a convolution.
        up: (out, rank) or (out, rank, 1, 1).
        scale: alpha / rank.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    kind: ClassVar[str] = "lora"
    shape: Shape = field(init=False)
    rank: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", (int(self.up.shape[0]), *map(int, self.down.shape[1:])))
        object.__setattr__(self, "rank", int(self.down.shape[0]))

    def delta(self, base: torch.Tensor, weight: float) -> torch.Tensor:
        """See `Update.delta`."""
        up = self.up.to(base.dtype).flatten(1) * (weight * self.scale)
        return (up @ self.down.to(base.dtype).flatten(1)).reshape(base.shape)

    @property
    def width(self) -> int:
        """See `Update.width`."""
        return self.rank

    def low_rank(self) -> LowRank:
        """See `Update.low_rank`."""
        return self


@dataclass(frozen=True, eq=False)
class Factors:
    """A matrix or a kernel as a product of factors, or whole.

    Attributes:
        left: (out, rank); whole: (out, in ...).
        right: (rank, in ...); missing if `left` is whole.
    """

    left: torch.Tensor
    right: torch.Tensor | None = None

    @property
    def rank(self) -> int | None:
        """Rank of the factors; `None` if it is whole."""
        return None if self.right is None else int(self.right.shape[0])

    @property
    def rows(self) -> int:
        """Length of the first dimension."""
        return int(self.left.shape[0])

    @property
    def columns(self) -> Shape:
        """Lengths of the others."""
        return tuple((self.left if self.right is None else self.right).shape[1:])

    def product(self, dtype: torch.dtype) -> torch.Tensor:
        """The product."""
        left = self.left.to(dtype)
        if self.right is None:
            return left
        product = left @ self.right.to(dtype).flatten(1)
        return product.reshape(self.rows, *self.columns)

    def _tensors(self) -> Iterator[torch.Tensor]:
        yield from (t for t in (self.left, self.right) if t is not None)


@dataclass(frozen=True, eq=False)
class Hadamard(Update):
    """LoHa: `weight * scale * (a1 @ b1) * (a2 @ b2)`, elementwise (Hyeon-Woo et al. 2021)."""

    first: Factors
    second: Factors
    scale: float
    shape: Shape
    rank: int
    kind: ClassVar[str] = "loha"

    def delta(self, base: torch.Tensor, weight: float) -> torch.Tensor:
        """See `Update.delta`."""
        product = self.first.product(base.dtype).mul_(self.second.product(base.dtype))
        return product.mul_(weight * self.scale).reshape(base.shape)

    @property
    def width(self) -> int:
        """See `Update.width`."""
        return (self.first.rank or 0) * (self.second.rank or 0)

    def low_rank(self) -> LowRank:
        """See `Update.low_rank`: a product of two ranks has the product of the ranks."""
        ups = [f.left.float() for f in (self.first, self.second)]
        downs = [
            f.right.float().flatten(1) for f in (self.first, self.second) if f.right is not None
        ]
        up = (ups[0][:, :, None] * ups[1][:, None, :]).flatten(1)
        down = (downs[0][:, None] * downs[1][None]).flatten(0, 1)
        return _product(down, up, self.scale, self.shape)


@dataclass(frozen=True, eq=False)
class Kronecker(Update):
    """LoKr: `weight * scale * kron(first, second)` (Yeh et al. 2023, section 3.2).

    Attributes:
        first: (o1, i1).
        second: (o2, i2 ...), where out = o1 o2 and in = i1 i2.
    """

    first: Factors
    second: Factors
    scale: float
    shape: Shape
    rank: int | None = None
    kind: ClassVar[str] = "lokr"

    def delta(self, base: torch.Tensor, weight: float) -> torch.Tensor:
        """See `Update.delta`."""
        second = self.second.product(base.dtype)
        first = self.first.product(base.dtype) * (weight * self.scale)
        return torch.kron(_with_dims(first, second.ndim), second.contiguous()).reshape(base.shape)

    @property
    def width(self) -> int | None:
        """See `Update.width`."""
        return None if self.second.rank is None else self.first.columns[0] * self.second.rank

    def low_rank(self) -> LowRank:
        """See `Update.low_rank`: kron(A, B C) = kron(A, B) kron(1, C)."""
        if self.second.right is None:
            return super().low_rank()
        up = torch.kron(self.first.product(torch.float32), self.second.left.float())
        right = self.second.right.float()
        ones = torch.eye(self.first.columns[0])
        down = torch.kron(_with_dims(ones, right.ndim), right)
        return _product(down, up, self.scale, self.shape)


@dataclass(frozen=True, eq=False)
class Scaling(Update):
    """(IA)3: `weight * factors * base`, by row or by column (Liu et al. 2022, section 3.3).

    Attributes:
        factors: shaped so that they can be multiplied with the weight.
    """

    factors: torch.Tensor
    shape: Shape
    kind: ClassVar[str] = "ia3"

    def delta(self, base: torch.Tensor, weight: float) -> torch.Tensor:
        """See `Update.delta`."""
        return base * (self.factors.to(base.dtype) * weight)


@dataclass(frozen=True, eq=False)
class Difference(Update):
    """`weight * difference`: a whole weight, bias, norm or embedding."""

    difference: torch.Tensor
    shape: Shape
    kind: ClassVar[str] = "full"

    def delta(self, base: torch.Tensor, weight: float) -> torch.Tensor:
        """See `Update.delta`."""
        return self.difference.to(base.dtype).reshape(base.shape) * weight


@dataclass(frozen=True, eq=False)
class Decomposed(Update):
    """DoRA: `magnitude * v / |v| - base` with `v = base + inner` (Liu et al. 2024, eq. 5).

    As in PEFT, the adapter's weight is inside the norm.

    Attributes:
        inner: the update of the direction.
        magnitude: shaped so that it can be multiplied with the weight.
        axis: dimension of the weight along which there are magnitudes: 0 for rows, 1 for columns.
    """

    inner: Update
    magnitude: torch.Tensor
    axis: int
    shape: Shape = field(init=False)
    rank: int | None = field(init=False)
    kind: ClassVar[str] = "dora"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.inner.shape)
        object.__setattr__(self, "rank", self.inner.rank)

    @property
    def kinds(self) -> tuple[str, ...]:
        """See `Update.kinds`."""
        return (self.kind,) if isinstance(self.inner, LowRank) else (self.kind, *self.inner.kinds)

    def delta(self, base: torch.Tensor, weight: float) -> torch.Tensor:
        """See `Update.delta`."""
        direction = base + self.inner.delta(base, weight)
        others = [d for d in range(base.ndim) if d != self.axis]
        norm = torch.linalg.vector_norm(direction, dim=others, keepdim=True)
        tiny = torch.finfo(base.dtype).eps  # a row of zeros stays zero
        return direction.mul_(self.magnitude.to(base.dtype) / (norm + tiny)).sub_(base)


def _product(down: torch.Tensor, up: torch.Tensor, scale: float, shape: Shape) -> LowRank:
    points = [1] * (len(shape) - 2)
    return LowRank(down.reshape(-1, *shape[1:]), up.reshape(*up.shape, *points), scale)


def _with_dims(tensor: torch.Tensor, count: int) -> torch.Tensor:
    return tensor.reshape(*tensor.shape, *[1] * (count - tensor.ndim))
