"""Every kind of adapter does to a weight what its published formula says, and what PEFT does."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import nn

from tessera.adapters.factors import ranks_of
from tessera.adapters.formats import ParsedAdapter, read_adapter
from tessera.adapters.library import PEFT_MODEL
from tessera.adapters.merge import merge
from tessera.adapters.targets import Targets
from tessera.adapters.updates import Unusable
from tests.fakes import kinds, lora
from tests.fakes.kinds import Kind


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, 12)
        self.bare = nn.Linear(8, 20, bias=False)
        self.conv = nn.Conv2d(8, 12, 3)
        self.point = nn.Conv2d(12, 8, 1)
        self.group = nn.GroupNorm(2, 8)
        self.layer = nn.LayerNorm(8)
        self.words = nn.Embedding(30, 8)
        for norm in (self.group, self.layer):
            nn.init.normal_(norm.weight, 1.0, 0.1)
            nn.init.normal_(norm.bias, 0.0, 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.group(self.point(self.conv(self.words(x).transpose(1, 3))))
        hidden = self.layer(hidden.mean((2, 3)))
        out: torch.Tensor = self.linear(torch.cat([hidden, hidden], 1))
        return out


NETWORK = Network().eval()
SHAPES = {name: tuple(parameter.shape) for name, parameter in NETWORK.named_parameters()}
TARGETS = Targets({"unet": SHAPES}, "a small network")
LAYERS = ("linear", "bare", "conv", "point")
CASES = [
    *((name, kind, layer) for name, kind in kinds.OF_LAYERS.items() for layer in LAYERS),
    *((name, kind, "conv") for name, kind in kinds.OF_KERNELS.items()),
    *(("full", kinds.full, layer) for layer in ("group", "layer", "words")),
    *(("norm", kinds.norm, layer) for layer in ("group", "layer")),
]


def kohya(path: Path, made: kinds.Made, layer: str) -> ParsedAdapter:
    tensors = {f"lora_unet_{layer}.{end}": tensor for end, tensor in made.tensors.items()}
    return read_adapter(lora.save(path, tensors), TARGETS)


@pytest.mark.parametrize(
    ("kind", "layer"), [c[1:] for c in CASES], ids=[f"{c[0]}, {c[2]}" for c in CASES]
)
@pytest.mark.parametrize("weight", [1.0, -0.6])
def test_it_does_what_its_formula_says(
    kind: Kind, layer: str, weight: float, tmp_path: Path
) -> None:
    module = NETWORK.get_submodule(layer)
    made = kind(module, torch.Generator().manual_seed(1))
    updates = kohya(tmp_path / "a.safetensors", made, layer).updates["unet"]
    assert set(updates) == {f"{layer}.{leaf}" for leaf in made.deltas}
    for leaf, delta in made.deltas.items():
        base = module.get_parameter(leaf).detach()
        exact = base.double() + delta(base.double(), weight)
        merged = merge(base, [(updates[f"{layer}.{leaf}"], weight)])
        assert (exact - base).abs().max() > 0.01, "no effect would prove nothing"
        torch.testing.assert_close(merged.double(), exact, atol=2e-6, rtol=2e-6)
        column = base.T.contiguous().T if base.ndim == 2 else base
        again = merge(column, [(updates[f"{layer}.{leaf}"], weight)])
        assert again.stride() == column.stride()
        torch.testing.assert_close(again.double(), exact, atol=2e-6, rtol=2e-6)


def test_several_kinds_on_one_weight_add_up(tmp_path: Path) -> None:
    base = NETWORK.linear.weight.detach()
    exact, terms = base.double(), []
    for seed, kind in enumerate((kinds.lora, kinds.dora, kinds.lokr, kinds.ia3, kinds.full)):
        made = kind(NETWORK.linear, torch.Generator().manual_seed(seed))
        file = kohya(tmp_path / f"{seed}.safetensors", made, "linear")
        terms.append((file.updates["unet"]["linear.weight"], 0.3 * seed - 0.5))
        exact = exact + made.deltas["weight"](base.double(), terms[-1][1])
    torch.testing.assert_close(merge(base, terms).double(), exact, atol=3e-6, rtol=3e-6)


@pytest.mark.parametrize(
    ("kind", "layer", "rank"),
    [
        (kinds.lora, "conv", 3),
        (kinds.locon_with_core, "conv", 3),
        (kinds.loha, "linear", 9),
        (kinds.loha_with_cores, "conv", 9),
        (kinds.lokr, "linear", 6),
        (kinds.lokr, "conv", 6),
        (kinds.lokr_with_core, "conv", 6),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_a_low_rank_product_can_take_the_side_path(
    kind: Kind, layer: str, rank: int, tmp_path: Path
) -> None:
    made = kind(NETWORK.get_submodule(layer), torch.Generator().manual_seed(2))
    update = kohya(tmp_path / "a.safetensors", made, layer).updates["unet"][f"{layer}.weight"]
    base = torch.zeros(update.shape, dtype=torch.float64)
    product = update.low_rank()
    assert (update.width, product.rank, product.shape) == (rank, rank, update.shape)
    exact = update.delta(base, 0.7)
    torch.testing.assert_close(product.delta(base, 0.7), exact, atol=1e-6, rtol=1e-5)
    assert max(ranks_of([({f"{layer}.weight": update}, 1.0)])) == rank


@pytest.mark.parametrize("kind", [kinds.dora, kinds.lokr_whole, kinds.ia3, kinds.full])
def test_what_is_none_says_so(kind: Kind, tmp_path: Path) -> None:
    made = kind(NETWORK.linear, torch.Generator().manual_seed(2))
    update = kohya(tmp_path / "a.safetensors", made, "linear").updates["unet"]["linear.weight"]
    assert update.width is None
    with pytest.raises(TypeError, match="is no low-rank product"):
        update.low_rank()


ALL = ["linear", "bare", "conv", "point"]
CONFIGS: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(r=3, lora_alpha=5, target_modules=[*ALL, "words"]),
    "lora with biases": lambda: LoraConfig(
        r=3, lora_alpha=5, target_modules=["linear", "conv"], lora_bias=True
    ),
    "rslora": lambda: LoraConfig(r=4, lora_alpha=3, target_modules=ALL, use_rslora=True),
    "dora": lambda: LoraConfig(r=3, lora_alpha=3, target_modules=ALL, use_dora=True),
    "loha": lambda: LoHaConfig(r=3, alpha=3, target_modules=ALL),
    "patterns": lambda: LoraConfig(
        r=3, lora_alpha=5, target_modules=ALL, alpha_pattern={"conv": 1}, rank_pattern={"bare": 2}
    ),
    "loha with cores": lambda: LoHaConfig(
        r=3, alpha=3, target_modules=ALL, use_effective_conv2d=True
    ),
    "lokr": lambda: LoKrConfig(r=2, alpha=2, target_modules=ALL, decompose_both=True),
    "lokr with a core": lambda: LoKrConfig(
        r=2, alpha=2, target_modules=ALL, use_effective_conv2d=True
    ),
    "ia3": lambda: IA3Config(target_modules=["linear", "conv"], feedforward_modules=[]),
    "ia3 of inputs": lambda: IA3Config(
        target_modules=["linear", "conv"], feedforward_modules=["linear", "conv"]
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("saved", ["by save_pretrained", "with the configuration in its header"])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_does_what_peft_does(name: str, saved: str, tmp_path: Path) -> None:
    """A file as PEFT writes it, and the network as PEFT merges it."""
    config = CONFIGS[name]()
    wrapped = get_peft_model(copy.deepcopy(NETWORK), config)
    torch.manual_seed(3)
    for key, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            keeps_sign = "magnitude" in key or "ia3" in key
            drawn = torch.randn_like(parameter) * 0.3
            parameter.data = parameter.data * (1 + drawn) if keeps_sign else drawn
    state = get_peft_model_state_dict(wrapped)
    metadata = None
    if isinstance(config, LoraConfig):
        fields = ("lora_alpha", "use_rslora", "alpha_pattern")
        metadata = {f"unet.{field}": getattr(config, field) for field in fields}
    path = lora.save(tmp_path / "a.safetensors", {k: t.clone() for k, t in state.items()}, metadata)
    if saved == "by save_pretrained":
        wrapped.save_pretrained(tmp_path)
        path = tmp_path / "adapter_model.safetensors"
    file = read_adapter(path, TARGETS)
    merged = dict(wrapped.merge_and_unload().named_parameters())
    changed = 0
    for key, parameter in NETWORK.named_parameters():
        update = file.updates["unet"].get(key)
        ours = parameter.detach() if update is None else merge(parameter.detach(), [(update, 1.0)])
        changed += update is not None and not torch.equal(ours, parameter)
        torch.testing.assert_close(ours, merged[key].detach(), atol=1e-5, rtol=1e-5)
    assert changed == len(file.updates["unet"]) > 1


@pytest.mark.parametrize(
    "changes", [{}, {"rank_pattern": {"bare": 32}, "alpha_pattern": {"bare": 3}}]
)
def test_peft_scales_two_whole_matrices_of_a_lokr_too(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    wrapped = get_peft_model(
        copy.deepcopy(NETWORK),
        LoKrConfig(r=8, alpha=16, target_modules=["linear", "bare"], **changes),
    )
    for key, parameter in wrapped.named_parameters():
        if "lokr" in key:
            parameter.data = torch.randn(parameter.shape)
    wrapped.save_pretrained(tmp_path)
    updates = read_adapter(tmp_path / PEFT_MODEL, TARGETS).updates["unet"]
    merged = dict(wrapped.merge_and_unload().named_parameters())
    for name, update in updates.items():
        assert update.rank is None
        before = NETWORK.get_parameter(name).detach()
        torch.testing.assert_close(
            merge(before, [(update, 1.0)]), merged[name].detach(), atol=1e-5, rtol=1e-5
        )
    assert set(updates) == {"linear.weight", "bare.weight"}


def test_alpha_of_a_loha_in_peft_s_configuration(tmp_path: Path) -> None:
    """The same weights with another configuration beside them are another adapter."""
    made = kinds.loha(NETWORK.linear, torch.Generator().manual_seed(0))
    ends = [end for end in made.tensors if end != "alpha"]
    tensors = {f"base_model.model.linear.{end}": made.tensors[end] for end in ends}
    path = lora.save(tmp_path / "adapter_model.safetensors", tensors)
    config = tmp_path / "adapter_config.json"
    base = NETWORK.linear.weight.detach().double()
    found = {}
    for alpha in (kinds.ALPHA, 2 * kinds.ALPHA):
        config.write_text(json.dumps({"peft_type": "LOHA", "alpha": alpha, "r": kinds.RANK}))
        found[alpha] = read_adapter(path, TARGETS)
        delta = found[alpha].updates["unet"]["linear.weight"].delta(base, 1.0)
        exact = made.deltas["weight"](base, alpha / kinds.ALPHA)
        torch.testing.assert_close(delta, exact, atol=1e-6, rtol=1e-6)
    assert len({file.digest for file in found.values()}) == 2
    config.write_text("[]")
    with pytest.raises(Unusable, match=r"has a file adapter_config.json beside it that is not a"):
        read_adapter(path, TARGETS)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"conv.lora_mid.weight": (2, 2, 3, 3)}, "lacks the down half of unet.conv"),
        ({"linear.diff": (16, 12)}, r"has shape \(16, 12\) for unet.linear.weight.*has \(12, 16\)"),
        ({"bare.diff_b": (20,)}, "changes unet.bare.bias, which a small network does not have"),
        ({"linear.weight": (7,), "linear.on_input": ()}, r"has 7 \(IA\)3 factors for unet.linear"),
        (
            {
                "linear.lora_down.weight": (2, 16),
                "linear.lora_up.weight": (12, 2),
                "linear.dora_scale": (5,),
            },
            "has 5 magnitudes for unet.linear, whose weight",
        ),
        (
            {
                "linear.lora_down.weight": (2, 16),
                "linear.lora_up.weight": (12, 2),
                "linear.diff": (12, 16),
            },
            "has two kinds of updates for unet.linear.weight",
        ),
        (
            {"linear.lokr_w1": (2, 4), "linear.lokr_w2": (5, 4)},
            r"has shape \(10, 16\) for unet.linear.weight",
        ),
        (
            {
                f"conv.hada_{end}": shape
                for end, shape in {
                    "w1_a": (2, 12), "w1_b": (2, 8), "t1": (3, 2, 3, 3),
                    "w2_a": (12, 2), "w2_b": (2, 72),
                }.items()
            },
            r"has a core of shape \(3, 2, 3, 3\) for unet.conv that does not fit",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    tensors: dict[str, tuple[int, ...]], reason: str, tmp_path: Path
) -> None:
    made = {f"lora_unet_{key}": torch.ones(shape) for key, shape in tensors.items()}
    with pytest.raises(Unusable, match=reason):
        read_adapter(lora.save(tmp_path / "a.safetensors", made), TARGETS)


def test_what_is_skipped_is_said(tmp_path: Path) -> None:
    made = kinds.full(NETWORK.linear, torch.Generator().manual_seed(0))
    tensors = {f"lora_unet_linear.{end}": tensor for end, tensor in made.tensors.items()}
    tensors["lora_unet_linear.alpha"] = torch.tensor(4.0)
    tensors["bundle_emb.word.string_to_param.*"] = torch.ones(2, 8)
    file = read_adapter(lora.save(tmp_path / "a.safetensors", tensors), TARGETS)
    assert file.skipped == (
        "1 alphas of full differences",
        "1 bundled embeddings (bundle_emb)",
    )
    assert file.kinds == ("full",)


def test_a_lora_of_an_inpainting_unet_is_told_apart(tmp_path: Path) -> None:
    def file(channels: int) -> Path:
        halves = {"lora_down.weight": (2, channels, 3, 3), "lora_up.weight": (32, 2, 1, 1)}
        tensors = {f"lora_unet_conv_in.{end}": torch.ones(s) for end, s in halves.items()}
        return lora.save(tmp_path / f"{channels}.safetensors", tensors)

    targets = {n: Targets({"unet": {"conv_in.weight": (32, n, 3, 3)}}, "a UNet") for n in (4, 9)}
    for own, other in ((4, 9), (9, 4)):
        assert read_adapter(file(own), targets[own]).kinds == ("lora",)
        kind = {4: "text-to-image", 9: "inpainting"}[other]
        reason = rf"for unet.conv_in.*: it was trained on a UNet of {other} input channels \({kind}"
        with pytest.raises(Unusable, match=reason):
            read_adapter(file(other), targets[own])
