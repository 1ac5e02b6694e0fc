"""Makes a module's updates of its tensors in an adapter file, by kind of adapter.

Knows tensors and shapes, nothing of files or names of networks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from tessera.adapters.updates import (
    Decomposed,
    Difference,
    Factors,
    Hadamard,
    Kronecker,
    LowRank,
    Scaling,
    Shape,
    Unusable,
    Update,
)

_ADAPTER = r"(?:\.[\w-]+)?"  # PEFT's name of the adapter (`default_0`), where a file has it
_ROLES = {
    "down": rf"\.lora_down\.weight|\.lora_A{_ADAPTER}\.weight"
    r"|(?:\.lora|_lora|\.lora_linear_layer)\.down\.weight",
    "up": rf"\.lora_up\.weight|\.lora_B{_ADAPTER}\.weight"
    r"|(?:\.lora|_lora|\.lora_linear_layer)\.up\.weight",
    "mid": r"\.lora_mid\.weight",
    "up_bias": rf"\.lora_up\.bias|\.lora_B{_ADAPTER}\.bias",
    "alpha": r"(?:\.lora|_lora|\.lora_linear_layer)?\.alpha",
    "dora_scale": r"\.dora_scale",
    "magnitude": rf"\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?",
    "embedding_down": rf"\.lora_embedding_A{_ADAPTER}",
    "embedding_up": rf"\.lora_embedding_B{_ADAPTER}",
    **{name: rf"\.hada_{name}{_ADAPTER}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{
        f"k{name}": rf"\.lokr_{name}{_ADAPTER}"
        for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    },
    "ia3_l": rf"\.ia3_l{_ADAPTER}",
    "on_input": r"\.on_input",
    "diff": r"\.diff|\.w_norm",
    "diff_b": r"\.diff_b|\.b_norm",
    "scaling": r"\.weight",
}
_ENDS = [(role, re.compile(rf"(.+?)(?:{pattern})")) for role, pattern in _ROLES.items()]
NUMBERS = ("alpha", "on_input")
"""Roles of tensors that are single numbers, of any type."""
Scale = Callable[[int | None], float]
"""Rank -> alpha / rank, where the module has no alpha of its own. `None` is the configuration's."""


def split(key: str) -> tuple[str, str] | None:
    """The path and the role of a key; `None` if no kind of adapter has such tensors."""
    for role, pattern in _ENDS:
        if match := pattern.fullmatch(key):
            return match[1], role
    return None


@dataclass
class Module:
    """The tensors of one module in a file.

    Attributes:
        name: `unet.mid_block...`, for errors.
        shapes: shapes of the module's `weight` and `bias` in the bundle, if it has them.
        family: title of the bundle's variant, for errors.
        scale: the scale by the file's configuration.
        tensors: by role.
        updates: those made so far, by `weight` and `bias`.
    """

    name: str
    shapes: Mapping[str, Shape]
    family: str
    scale: Scale
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    updates: dict[str, Update] = field(default_factory=dict)

    def read(self) -> dict[str, Update]:
        """Make all updates. `tensors` then has what had no effect.

        Raises:
            Unusable: tensors are missing, or do not fit each other or the module.
        """
        for make in (_low_rank, _embedding, _hadamard, _kronecker, _scaling, _difference):
            make(self)
        if any(role in self.tensors for role in ("dora_scale", "magnitude")):
            _decomposed(self)
        idle = [role for role in self.tensors if role != "alpha" or not self.updates]
        if idle:
            raise Unusable(f"lacks a tensor that belongs to {idle[0]} of {self.name}")
        return self.updates

    def take(self, *roles: str) -> list[torch.Tensor] | None:
        """The tensors of some roles, or `None` if the file has none of them.

        Raises:
            Unusable: it has only some of them.
        """
        found = [role in self.tensors for role in roles]
        if not any(found):
            return None
        if not all(found):
            raise Unusable(f"lacks the {roles[found.index(False)]} half of {self.name}")
        return [self.tensors.pop(role) for role in roles]

    def scale_of(self, rank: int | None) -> float:
        """The scale of a product, by the module's alpha or by the file's configuration. The former
        has no effect on one of whole matrices, whose rank is `None`.
        """
        alpha = self.tensors.pop("alpha", None)
        if alpha is None:
            return self.scale(rank)
        return 1.0 if rank is None else float(alpha) / rank

    def shape(self, leaf: str) -> Shape:
        """Shape of the weight or the bias.

        Raises:
            Unusable: the module has none.
        """
        if leaf not in self.shapes:
            raise Unusable(f"changes {self.name}.{leaf}, which {self.family} does not have")
        return self.shapes[leaf]

    def add(self, leaf: str, update: Update) -> None:
        """Add an update of the weight or the bias."""
        if leaf in self.updates:
            raise Unusable(f"has two kinds of updates for {self.name}.{leaf}")
        self.updates[leaf] = update

    def fit(self, leaf: str, shape: Shape) -> Shape:
        """The shape of the weight or the bias, which an update of another shape may be of if it
        differs in ones only.

        Raises:
            Unusable: it differs in more.
        """
        accepted = self.shape(leaf)
        if _bare(shape) != _bare(accepted):
            raise Unusable(
                f"has shape {shape} for {self.name}.{leaf}, where this bundle's "
                f"{self.family} has {accepted}{_of_other_input(self.name, shape, accepted)}"
            )
        return accepted


def _low_rank(module: Module) -> None:
    mid = module.tensors.pop("mid", None)
    halves = module.take("down", "up")
    if halves is None:
        if mid is not None:
            raise Unusable(f"lacks the down half of {module.name}")
        return
    down, up = halves
    if mid is not None:
        down = _with_core(module.name, mid, down)
    fits = (
        down.ndim >= 2
        and up.ndim >= 2
        and up.shape[1] == down.shape[0] > 0
        and set(up.shape[2:]) <= {1}
    )
    if not fits:
        raise Unusable(
            f"has halves of shapes {tuple(down.shape)} and {tuple(up.shape)} for {module.name}, "
            "which do not form a low-rank product"
        )
    shape = module.fit("weight", (up.shape[0], *down.shape[1:]))
    points = [1] * (len(shape) - 2)
    scale = module.scale_of(int(down.shape[0]))
    down, up = down.reshape(-1, *shape[1:]), up.reshape(*up.shape[:2], *points)
    module.add("weight", LowRank(down.contiguous(), up.contiguous(), scale))
    if bias := module.take("up_bias"):
        module.add("bias", Difference(bias[0] * scale, module.fit("bias", tuple(bias[0].shape))))


def _with_core(name: str, core: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The down half of a product with a core between its halves (LoCon with CP decomposition)."""
    if core.ndim < 3 or core.shape[1] != down.shape[0] or math.prod(down.shape[2:]) != 1:
        raise Unusable(
            f"has a core of shape {tuple(core.shape)} for {name}, which does not fit its down half"
        )
    flat = down.flatten(1).float()
    return torch.einsum("rs...,si->ri...", core.float(), flat)


def _embedding(module: Module) -> None:
    """PEFT's for embeddings: the weight is (tokens, width), and the factors are transposed."""
    if halves := module.take("embedding_down", "embedding_up"):
        down, up = halves  # (rank, tokens), (width, rank)
        if down.shape[0] != up.shape[1]:
            raise Unusable(f"has halves for {module.name} that do not form a low-rank product")
        module.fit("weight", (down.shape[1], up.shape[0]))
        scale = module.scale_of(int(down.shape[0]))
        module.add("weight", LowRank(up.T.contiguous(), down.T.contiguous(), scale))


def _hadamard(module: Module) -> None:
    cores = [module.tensors.pop(core, None) for core in ("t1", "t2")]
    halves = module.take("w1_a", "w1_b", "w2_a", "w2_b")
    if halves is None:
        return
    first = _factors(module.name, halves[0], halves[1], cores[0])
    second = _factors(module.name, halves[2], halves[3], cores[1])
    sizes = [(f.rows, *f.columns) for f in (first, second)]
    if math.prod(sizes[0]) != math.prod(sizes[1]):
        raise Unusable(f"has products of shapes {sizes[0]} and {sizes[1]} for {module.name}")
    shape = _flat_fit(module, first.rows, first.columns)
    rank = first.rank or 1
    scale = module.scale_of(rank)
    module.add("weight", Hadamard(first, second, scale, shape, rank))


def _kronecker(module: Module) -> None:
    if not any(role.startswith("kw") for role in module.tensors):
        return
    core = module.tensors.pop("kt2", None)
    sides = []
    for number in (1, 2):
        if whole := module.take(f"kw{number}"):
            sides.append(Factors(whole[0]))
        elif halves := module.take(f"kw{number}_a", f"kw{number}_b"):
            of_second = core if number == 2 else None
            sides.append(_factors(module.name, halves[0], halves[1], of_second))
        else:
            raise Unusable(f"lacks lokr_w{number} of {module.name}")
    first, second = sides
    rank = second.rank or first.rank
    rows = first.rows * second.rows
    columns = (math.prod(first.columns) * second.columns[0], *second.columns[1:])
    shape = _flat_fit(module, rows, columns)
    module.add("weight", Kronecker(first, second, module.scale_of(rank), shape, rank))


def _factors(
    name: str, left: torch.Tensor, right: torch.Tensor, core: torch.Tensor | None
) -> Factors:
    """Two factors. With a core (Tucker decomposition) the left one is transposed in files."""
    if core is not None:
        fits = core.ndim > 2 and left.shape[0] == core.shape[0] and right.shape[0] == core.shape[1]
        if not fits:
            raise Unusable(f"has a core of shape {tuple(core.shape)} for {name} that does not fit")
        right = torch.einsum("ij...,jr->ir...", core.float(), right.float())
        left = left.T
    if left.ndim != 2 or left.shape[1] != right.shape[0]:
        shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
        raise Unusable(f"has factors of shapes {shapes} for {name}, which form no product")
    return Factors(left.contiguous(), right.contiguous())


def _flat_fit(module: Module, rows: int, columns: Shape) -> Shape:
    """The weight's shape, of which all dimensions but the first may be one in the file."""
    shape = module.shape("weight")
    if (rows, math.prod(columns)) == (shape[0], math.prod(shape[1:])):
        return shape
    return module.fit("weight", (rows, *columns))


def _scaling(module: Module) -> None:
    if "scaling" in module.tensors and "on_input" not in module.tensors:
        raise Unusable(f"has the whole weight of {module.name}, as checkpoints have")
    if halves := module.take("scaling", "on_input"):
        axis = int(bool(halves[1]))
        module.add("weight", _scaled(module, halves[0], axis))
    elif given := module.take("ia3_l"):  # of PEFT: factors around one
        shape, factors = module.shape("weight"), given[0]
        axes = [axis for axis in (0, 1) if factors.numel() == shape[axis]]
        if len(axes) > 1 and factors.ndim == 2:
            axes = [0] if factors.shape[1] == 1 else [1]
        if len(axes) > 1:
            raise Unusable(f"has (IA)3 factors for {module.name} that may be of rows or columns")
        axis = axes[0] if axes else 0
        module.add("weight", _scaled(module, factors - 1, axis))
        if axis == 0 and "bias" in module.shapes:  # PEFT scales the output, and it with the bias
            module.add("bias", Scaling(factors.flatten() - 1, module.shapes["bias"]))


def _scaled(module: Module, factors: torch.Tensor, axis: int) -> Scaling:
    shape = module.shape("weight")
    return Scaling(_along(module, factors, axis, "(IA)3 factors"), shape)


def _along(module: Module, vector: torch.Tensor, axis: int, what: str) -> torch.Tensor:
    """A vector, shaped so that it can be multiplied with the weight along an axis."""
    shape = module.shape("weight")
    if vector.numel() != shape[axis]:
        raise Unusable(
            f"has {vector.numel()} {what} for {module.name}, whose weight has shape {shape}"
        )
    return vector.reshape([-1 if d == axis else 1 for d in range(len(shape))])


def _difference(module: Module) -> None:
    for role, leaf in (("diff", "weight"), ("diff_b", "bias")):
        if given := module.take(role):
            shape = module.fit(leaf, tuple(given[0].shape))
            module.add(leaf, Difference(given[0], shape))


def _decomposed(module: Module) -> None:
    of_peft = "magnitude" in module.tensors
    magnitude = module.tensors.pop("magnitude" if of_peft else "dora_scale")
    inner = module.updates.pop("weight", None)
    if inner is None:
        raise Unusable(f"has magnitudes for {module.name}, but no update of it")
    by_column = not of_peft and magnitude.ndim > 1 and magnitude.shape[0] == 1 != inner.shape[0]
    axis = int(by_column)
    shaped = _along(module, magnitude, axis, "magnitudes")
    module.add("weight", Decomposed(inner, shaped, axis))


def _bare(shape: Shape) -> Shape:
    """A shape without the ones of a kernel of one point."""
    return shape[:2] if set(shape[2:]) == {1} else shape


def _of_other_input(name: str, shape: Shape, accepted: Shape) -> str:
    """Which UNet a file was trained on, where the number of channels of the input tells it."""
    if name != "unet.conv_in" or shape[1:2] == accepted[1:2]:
        return ""
    kinds = {4: "text-to-image", 8: "image editing", 9: "inpainting"}
    kind = kinds.get(shape[1], "other")
    return f": it was trained on a UNet of {shape[1]} input channels ({kind})"
