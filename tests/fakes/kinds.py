"""Random adapter files of every kind, with what each does to a weight by the published formula, in
float64 and independently of Tessera's code.

Tensors are named by their ends (`lora_up.weight`), as kohya's scripts and LyCORIS write them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import nn

from tessera.types import Tensors

RANK, ALPHA = 3, 2.0
Delta = Callable[[torch.Tensor, float], torch.Tensor]
"""(weight in float64, the adapter's weight) -> what is added to the weight."""
ManyDeltas = dict[tuple[str, str], Delta]
"""By network and name of the weight."""


@dataclass(frozen=True)
class Made:
    """An adapter of one module: tensors by end, and the deltas of `weight` and `bias`."""

    tensors: Tensors
    deltas: Mapping[str, Delta]


Kind = Callable[[nn.Module, torch.Generator], Made]


def _random(generator: torch.Generator, *shape: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(*shape, generator=generator)


def _sized(weight: torch.Tensor, delta: torch.Tensor) -> float:
    """By what a factor is multiplied to make a delta half as large as the weight."""
    return float(0.5 * weight.detach().double().std() / delta.std())


def lora(module: nn.Module, generator: torch.Generator) -> Made:
    weight = module.get_parameter("weight")
    out, *inner = weight.shape
    down = _random(generator, RANK, *inner)
    up = _random(generator, out, RANK, *[1] * (len(inner) - 1))
    scale = ALPHA / RANK

    def product() -> torch.Tensor:
        return torch.einsum("or,ri->oi", up.double().flatten(1), down.double().flatten(1))

    up *= _sized(weight, product() * scale)
    delta = product().reshape(weight.shape) * scale
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(ALPHA)}
    return Made(tensors, {"weight": lambda base, w: w * delta})


def integer_alpha(module: nn.Module, generator: torch.Generator) -> Made:
    made = lora(module, generator)
    return Made({**made.tensors, "alpha": torch.tensor(int(ALPHA))}, made.deltas)


def eight_bits(module: nn.Module, generator: torch.Generator) -> Made:
    made = lora(module, generator)
    halves = {}
    for end in ("lora_down.weight", "lora_up.weight"):
        halves[end] = (made.tensors[end] * 8).to(torch.float8_e4m3fn)
    down, up = (halves[end].double().flatten(1) for end in halves)
    shape = module.get_parameter("weight").shape
    delta = (up @ down).reshape(shape) * ALPHA / RANK / 64
    return Made(
        {**halves, "alpha": torch.tensor(ALPHA / 64)}, {"weight": lambda base, w: w * delta}
    )


def locon_with_core(module: nn.Module, generator: torch.Generator) -> Made:
    """LoCon with CP decomposition; for 3x3 convolutions."""
    weight = module.get_parameter("weight")
    out, inner, height, width = weight.shape
    down = _random(generator, RANK, inner, 1, 1)
    mid = _random(generator, RANK, RANK, height, width)
    up = _random(generator, out, RANK, 1, 1)
    scale = ALPHA / RANK

    def product() -> torch.Tensor:
        factors = [t.double().flatten(1) for t in (up, down)]
        return torch.einsum("or,rshw,si->oihw", factors[0], mid.double(), factors[1])

    up *= _sized(weight, product() * scale)
    delta = product() * scale
    tensors = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
    return Made({**tensors, "alpha": torch.tensor(ALPHA)}, {"weight": lambda base, w: w * delta})


def _decomposed(made: Made, weight: torch.Tensor, generator: torch.Generator, axis: int) -> Made:
    others = [d for d in range(weight.ndim) if d != axis]
    norm = weight.detach().double().pow(2).sum(others, keepdim=True).sqrt()
    magnitude = (norm * (1 + 0.3 * _random(generator, *norm.shape))).float()
    inner = made.deltas["weight"]

    def delta(base: torch.Tensor, w: float) -> torch.Tensor:
        direction = base + inner(base, w)
        lengths = direction.pow(2).sum(others, keepdim=True).sqrt()
        return magnitude.double() * direction / lengths - base

    return Made({**made.tensors, "dora_scale": magnitude}, {"weight": delta})


def dora(module: nn.Module, generator: torch.Generator) -> Made:
    """Magnitudes of rows, as newer versions of LyCORIS and OneTrainer train them."""
    return _decomposed(lora(module, generator), module.get_parameter("weight"), generator, 0)


def dora_of_columns(module: nn.Module, generator: torch.Generator) -> Made:
    """As older ones did."""
    return _decomposed(lora(module, generator), module.get_parameter("weight"), generator, 1)


def loha(module: nn.Module, generator: torch.Generator) -> Made:
    weight = module.get_parameter("weight")
    out, columns = weight.shape[0], weight[0].numel()
    sides = [(_random(generator, out, RANK), _random(generator, RANK, columns)) for _ in range(2)]

    def product() -> torch.Tensor:
        (a1, b1), (a2, b2) = [(a.double(), b.double()) for a, b in sides]
        return torch.einsum("or,ri,os,si->oi", a1, b1, a2, b2) * ALPHA / RANK

    sides[0][0].mul_(_sized(weight, product()))
    delta = product().reshape(weight.shape)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    tensors = dict(zip(names, [t for side in sides for t in side], strict=True))
    return Made({**tensors, "alpha": torch.tensor(ALPHA)}, {"weight": lambda base, w: w * delta})


def loha_with_cores(module: nn.Module, generator: torch.Generator) -> Made:
    """LoHa with Tucker decomposition; for 3x3 convolutions."""
    weight = module.get_parameter("weight")
    out, inner, height, width = weight.shape
    tensors = {}
    for n in (1, 2):
        tensors[f"hada_t{n}"] = _random(generator, RANK, RANK, height, width)
        tensors[f"hada_w{n}_a"] = _random(generator, RANK, out)
        tensors[f"hada_w{n}_b"] = _random(generator, RANK, inner)

    def side(n: int) -> torch.Tensor:
        names = (f"hada_t{n}", f"hada_w{n}_b", f"hada_w{n}_a")
        return torch.einsum("ijkl,jr,ip->prkl", *(tensors[name].double() for name in names))

    tensors["hada_w1_a"] *= _sized(weight, side(1) * side(2) * ALPHA / RANK)
    delta = side(1) * side(2) * ALPHA / RANK
    return Made({**tensors, "alpha": torch.tensor(ALPHA)}, {"weight": lambda base, w: w * delta})


def dora_of_loha(module: nn.Module, generator: torch.Generator) -> Made:
    return _decomposed(loha(module, generator), module.get_parameter("weight"), generator, 0)


def lokr(module: nn.Module, generator: torch.Generator) -> Made:
    """The first matrix whole, the second one factored (over all points of a kernel)."""
    weight = module.get_parameter("weight")
    out, inner, points = weight.shape[0], weight.shape[1], weight[0, 0].numel()
    first = _random(generator, 4, 2)
    left = _random(generator, out // 4, RANK)
    right = _random(generator, RANK, inner // 2 * points)

    def product() -> torch.Tensor:
        second = (left.double() @ right.double()).reshape(out // 4, inner // 2, points)
        both = torch.einsum("ab,cdp->acbdp", first.double(), second)
        return both.reshape(weight.shape) * ALPHA / RANK

    first *= _sized(weight, product())
    delta = product()
    tensors = {"lokr_w1": first, "lokr_w2_a": left, "lokr_w2_b": right}
    return Made({**tensors, "alpha": torch.tensor(ALPHA)}, {"weight": lambda base, w: w * delta})


def lokr_whole(module: nn.Module, generator: torch.Generator) -> Made:
    """Both matrices whole: alpha has no effect."""
    weight = module.get_parameter("weight")
    out, inner, *points = weight.shape
    first = _random(generator, 2, 4)
    second = _random(generator, out // 2, inner // 4, *points)

    def product() -> torch.Tensor:
        flat = second.double().reshape(out // 2, inner // 4, -1)
        return torch.einsum("ab,cdp->acbdp", first.double(), flat).reshape(weight.shape)

    first *= _sized(weight, product())
    delta = product()
    tensors = {"lokr_w1": first, "lokr_w2": second, "alpha": torch.tensor(1e10)}
    return Made(tensors, {"weight": lambda base, w: w * delta})


def lokr_with_core(module: nn.Module, generator: torch.Generator) -> Made:
    """The first matrix factored, the second one by Tucker decomposition; for 3x3 convolutions."""
    weight = module.get_parameter("weight")
    out, inner, height, width = weight.shape
    tensors = {
        "lokr_w1_a": _random(generator, 4, RANK),
        "lokr_w1_b": _random(generator, RANK, 2),
        "lokr_t2": _random(generator, RANK, RANK, height, width),
        "lokr_w2_a": _random(generator, RANK, out // 4),
        "lokr_w2_b": _random(generator, RANK, inner // 2),
    }

    def product() -> torch.Tensor:
        t = {name: tensor.double() for name, tensor in tensors.items()}
        first = t["lokr_w1_a"] @ t["lokr_w1_b"]
        second = torch.einsum("ijkl,jr,ip->prkl", t["lokr_t2"], t["lokr_w2_b"], t["lokr_w2_a"])
        both = torch.einsum("ab,cdkl->acbdkl", first, second)
        return both.reshape(weight.shape) * ALPHA / RANK

    tensors["lokr_w1_a"] *= _sized(weight, product())
    delta = product()
    return Made({**tensors, "alpha": torch.tensor(ALPHA)}, {"weight": lambda base, w: w * delta})


def ia3(module: nn.Module, generator: torch.Generator) -> Made:
    """Scaled outputs."""
    weight = module.get_parameter("weight")
    factors = _random(generator, weight.shape[0], size=0.5)
    shaped = factors.double().reshape(-1, *[1] * (weight.ndim - 1))
    tensors = {"weight": factors, "on_input": torch.tensor(0)}
    return Made(tensors, {"weight": lambda base, w: w * base * shaped})


def ia3_of_inputs(module: nn.Module, generator: torch.Generator) -> Made:
    weight = module.get_parameter("weight")
    factors = _random(generator, 1, weight.shape[1], *[1] * (weight.ndim - 2), size=0.5)
    tensors = {"weight": factors, "on_input": torch.tensor(True)}
    return Made(tensors, {"weight": lambda base, w: w * base * factors.double()})


def full(module: nn.Module, generator: torch.Generator) -> Made:
    """Differences of the weight, and of the bias if there is one."""
    return _differences(module, generator, {"weight": "diff", "bias": "diff_b"})


def norm(module: nn.Module, generator: torch.Generator) -> Made:
    """As LyCORIS names those of norms."""
    return _differences(module, generator, {"weight": "w_norm", "bias": "b_norm"})


def _differences(module: nn.Module, generator: torch.Generator, ends: Mapping[str, str]) -> Made:
    tensors: Tensors = {}
    deltas: dict[str, Delta] = {}
    for leaf, parameter in module.named_parameters():
        tensor = _random(generator, *parameter.shape, size=0.4 * float(parameter.detach().std()))
        tensors[ends[leaf]] = tensor
        deltas[leaf] = lambda base, w, tensor=tensor: w * tensor.double()  # type: ignore[misc]
    return Made(tensors, deltas)


OF_LAYERS: Mapping[str, Kind] = {
    "lora": lora,
    "alpha as an integer": integer_alpha,
    "float8": eight_bits,
    "dora": dora,
    "dora of columns": dora_of_columns,
    "loha": loha,
    "dora of a loha": dora_of_loha,
    "lokr": lokr,
    "lokr of whole matrices": lokr_whole,
    "ia3": ia3,
    "ia3 of inputs": ia3_of_inputs,
    "full": full,
}
"""For linear layers and convolutions."""
_TEXT_PREFIXES = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
OF_KERNELS: Mapping[str, Kind] = {
    "locon with a core": locon_with_core,
    "loha with cores": loha_with_cores,
    "lokr with a core": lokr_with_core,
}
"""For convolutions of several points."""


def whole_file(
    pipe: DiffusionPipeline, parts: Mapping[str, Kind], seed: int
) -> tuple[Tensors, ManyDeltas]:
    """A file in kohya's layout for UNet and text encoders, and what it does.

    Args:
        pipe: whose networks it changes.
        parts: by the end of modules' names: their kind. A module has the first that fits.
        seed: of its numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    deltas: ManyDeltas = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for name, module in getattr(pipe, part, nn.Module()).named_modules():
            kind = next((kind for end, kind in parts.items() if name.endswith(end)), None)
            if kind is None or not hasattr(module, "weight"):
                continue
            made = kind(module, generator)
            bare = name.removeprefix("text_model.")
            projection = part == "unet" or bare == "text_projection"
            stem = f"{_TEXT_PREFIXES.get(part, 'lora_unet')}_{'' if projection else 'text_model_'}"
            key = f"{stem}{bare.replace('.', '_')}"
            tensors |= {f"{key}.{end}": tensor for end, tensor in made.tensors.items()}
            deltas |= {(part, f"{name}.{leaf}"): delta for leaf, delta in made.deltas.items()}
    return tensors, deltas
