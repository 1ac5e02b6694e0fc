"""LoRA files mean here what they mean to diffusers, and what is none is refused by its name."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from tessera.adapters.formats import read_adapter
from tessera.adapters.merge import merge
from tessera.adapters.targets import Targets
from tessera.adapters.updates import LowRank, Unusable
from tessera.types import Tensors
from tests.fakes import lora
from tests.fakes.checkpoint import topology
from tests.samples.targets import targets


@pytest.fixture(scope="module")
def pipes() -> Callable[[str], DiffusionPipeline]:
    """Pipelines that no test changes."""
    made: dict[str, DiffusionPipeline] = {}

    def get(variant: str) -> DiffusionPipeline:
        return made.setdefault(variant, made.get(variant) or topology(variant))

    return get


def fused(variant: str, path: Path, weight: float) -> DiffusionPipeline:
    """The reference: diffusers loads the file and fuses it into its weights."""
    pipe = topology(variant)
    pipe.load_lora_weights(str(path), adapter_name="a")
    pipe.set_adapters(["a"], [weight])
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe


def assert_means_the_same(variant: str, pipe: DiffusionPipeline, path: Path) -> int:
    """Compare every weight of every network; returns how many are changed."""
    what = targets(pipe)
    updates = read_adapter(path, what).updates
    reference = fused(variant, path, 0.7)
    changed = 0
    for part in what.shapes:
        theirs = dict(getattr(reference, part).named_parameters())
        for name, weight in getattr(pipe, part).named_parameters():
            ours = weight.detach()
            if name in updates.get(part, {}):
                ours = merge(ours, [(updates[part][name], 0.7)])
                changed += not torch.equal(ours, weight)
            torch.testing.assert_close(ours, theirs[name].detach(), atol=1e-6, rtol=0)
    return changed


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("variant", "layout"),
    [*(("sd15", layout) for layout in lora.LAYOUTS), ("sdxl", "kohya"), ("sdxl", "peft")],
)
def test_a_file_means_what_it_means_to_diffusers(
    pipes: Callable[[str], DiffusionPipeline], variant: str, layout: str, tmp_path: Path
) -> None:
    pipe = pipes(variant)
    modules = lora.ATTENTION if layout == "diffusers-old" else lora.EVERYTHING
    pairs = lora.random_pairs(pipe, modules=modules)
    path = lora.save(tmp_path / "a.safetensors", lora.LAYOUTS[layout](pairs))
    assert assert_means_the_same(variant, pipe, path) == len(pairs)
    assert read_adapter(path, targets(pipe)).layout == layout.removesuffix("-old")


@pytest.mark.filterwarnings("ignore")
def test_two_schemes_of_names_in_one_file_are_both_applied(
    pipes: Callable[[str], DiffusionPipeline], tmp_path: Path
) -> None:
    """Diffusers drops the original release's names where its own are there, too."""
    pipe = pipes("sdxl")
    pairs = lora.random_pairs(pipe)
    blocks = {k: p for k, p in pairs.items() if k[0] != "unet" or "_block" in k[1]}
    half = dict(list(blocks.items())[::2])
    other = {k: p for k, p in blocks.items() if k not in half}
    original = lora.save(tmp_path / "a.safetensors", lora.kohya_sgm(blocks, pipe.unet))
    assert assert_means_the_same("sdxl", pipe, original) == len(blocks)
    tensors = lora.kohya(half) | lora.kohya_sgm(other, pipe.unet)
    mixed = read_adapter(lora.save(tmp_path / "b.safetensors", tensors), targets(pipe))
    expected = read_adapter(original, targets(pipe))
    assert mixed.updates.keys() == expected.updates.keys()
    for part, updates in expected.updates.items():
        assert mixed.updates[part].keys() == updates.keys()
        for name, update in updates.items():
            found = mixed.updates[part][name]
            assert isinstance(found, LowRank)
            assert isinstance(update, LowRank)
            assert torch.equal(found.up, update.up)
            assert torch.equal(found.down, update.down)
            assert found.scale == update.scale


def test_the_same_weight_by_two_names_is_refused(
    pipes: Callable[[str], DiffusionPipeline], tmp_path: Path
) -> None:
    pipe = pipes("sdxl")
    pairs = lora.random_pairs(pipe, parts=("unet",))
    tensors = lora.kohya(pairs) | lora.kohya_sgm(pairs, pipe.unet)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    path = lora.save(tmp_path / "a.safetensors", tensors)
    with pytest.raises(Unusable, match="two keys that stand for unet"):
        read_adapter(path, targets(pipe))


@pytest.mark.filterwarnings("ignore")
def test_ranks_and_alphas_in_peft_metadata(
    pipes: Callable[[str], DiffusionPipeline], tmp_path: Path
) -> None:
    """Through PEFT itself: a network with adapters, saved by diffusers' `save_lora_weights`."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe, saved = pipes("sd15"), topology("sd15")
    torch.manual_seed(1)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_k", "conv1", "mid_block.attentions.0.proj_in"],
        rank_pattern={"to_k": 2},
        alpha_pattern={"to_k": 3, "^mid_block.attentions.0.proj_in": 1},
        use_rslora=True,
        init_lora_weights=False,
    )
    saved.unet.add_adapter(config)
    state = get_peft_model_state_dict(saved.unet)
    metadata = {k: list(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    saved.save_lora_weights(tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=metadata)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert assert_means_the_same("sd15", pipe, path) == len(state) // 2


@pytest.mark.filterwarnings("ignore")
def test_the_weight_of_a_dora_is_that_of_diffusers(
    pipes: Callable[[str], DiffusionPipeline], tmp_path: Path
) -> None:
    """Inside of the norm, which other programs do not do."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe, saved = pipes("sd15"), topology("sd15")
    torch.manual_seed(1)
    modules = ["to_q", "conv1", "proj_in"]
    config = LoraConfig(
        r=4, lora_alpha=4, target_modules=modules, use_dora=True, init_lora_weights=False
    )
    saved.unet.add_adapter(config)
    for name, parameter in saved.unet.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.randn_like(parameter)
    state = get_peft_model_state_dict(saved.unet)
    metadata = {k: list(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    saved.save_lora_weights(tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=metadata)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert assert_means_the_same("sd15", pipe, path) == len(state) // 3 > 10


def test_names_of_the_original_sdxl_code(
    pipes: Callable[[str], DiffusionPipeline], tmp_path: Path
) -> None:
    """Kohya's scripts train SDXL under the names of Stability's code."""
    pipe = pipes("sdxl")
    name = "up_blocks.0.attentions.1.transformer_blocks.2.attn2.to_k"
    pair = lora.random_pairs(pipe, modules=(name,))["unet", name]
    key = "lora_unet_output_blocks_1_1_transformer_blocks_2_attn2_to_k"
    path = lora.save(
        tmp_path / "a.safetensors",
        {
            f"{key}.lora_down.weight": pair.down,
            f"{key}.lora_up.weight": pair.up,
            f"{key}.alpha": torch.tensor(2.0),
        },
    )
    (update,) = read_adapter(path, targets(pipe)).updates["unet"].items()
    assert isinstance(update[1], LowRank)
    assert (update[0], update[1].scale) == (f"{name}.weight", 2.0 / 4)


def test_each_module_has_its_own_alpha(
    pipes: Callable[[str], DiffusionPipeline], tmp_path: Path
) -> None:
    """Where diffusers 0.42.1 applies the commonest alpha to all attention weights."""
    pairs = lora.random_pairs(pipes("sd15"), modules=("attn1.to_q", "conv1", "fc1", "q_proj"))
    tensors = lora.kohya(pairs)
    alphas = [k for k in tensors if k.endswith(".alpha")]
    tensors |= {key: torch.tensor(float(i + 1)) for i, key in enumerate(alphas)}
    path = lora.save(tmp_path / "a.safetensors", tensors)
    found: Any = read_adapter(path, targets(pipes("sd15"))).updates
    scales = {(p, m): found[p][f"{m}.weight"].scale for p, m in pairs}
    assert scales == {key: (i + 1) / 4 for i, key in enumerate(pairs)}


A, B = torch.ones(2, 8), torch.ones(8, 2)
NAME = "unet.mid_block.attentions.0.proj_in"
SMALL = Targets({"unet": {f"{NAME[5:]}.weight": (8, 8)}}, "a small network")
GOOD = {f"{NAME}.lora_A.weight": A, f"{NAME}.lora_B.weight": B}


def _nan(value: float) -> torch.Tensor:
    tensor = A.clone()
    tensor[1, 3] = value
    return tensor


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "is empty"),
        ({"lora_unet_x.oft_blocks": A}, "is an OFT"),
        ({"lora_unet_x.a1.weight": A}, "is a GLoRA"),
        ({"emb_params": A}, "is an embedding"),
        ({"transformer.x.lora_A.weight": A}, "is a LoRA of a diffusion transformer"),
        ({"bundle_emb.x.string_to_param.*": A}, "changes nothing: it has 1 bundled embeddings"),
        ({**GOOD, f"{NAME}.lora_B.bias": torch.ones(8)}, "changes unet.mid_block"),
        ({f"{NAME}.lora_magnitude_vector": A}, "has magnitudes for unet.mid_block"),
        ({f"{NAME}.hada_w1_a": A}, "lacks the w1_b half of unet.mid_block"),
        ({f"{NAME}.lokr_w1": A}, "lacks lokr_w2 of unet.mid_block"),
        ({f"{NAME}.alpha": torch.tensor(1.0)}, "lacks a tensor that belongs to alpha of unet"),
        ({f"{NAME}.weight": A}, "has the whole weight of unet.mid_block"),
        ({**GOOD, f"{NAME}.alpha": torch.ones(2)}, "has 2 values in unet.mid_block"),
        ({"model.diffusion_model.conv": A}, "has the key model.diffusion_model.conv"),
        ({"text_encoder.x.lora_A.weight": A}, "changes the network text_encoder, which a small"),
        (
            {**GOOD, f"{NAME}.lora_A.weight": _nan(torch.nan)},
            "has NaN or infinite values in unet.mid_block",
        ),
        (
            {**GOOD, f"{NAME}.lora_A.weight": _nan(torch.inf)},
            "has NaN or infinite values in unet.mid_block",
        ),
        ({**GOOD, f"{NAME}.lora_A.weight": A.to(torch.int8)}, "has unet.mid_block"),
        ({f"{NAME}.lora_A.weight": A}, "lacks the up half of unet.mid_block"),
        ({**GOOD, f"{NAME}.lora_B.weight": B.T}, "has halves of shapes (2, 8) and (2, 8)"),
        ({f"{NAME}.lora_B.weight": B}, "lacks the down half of unet.mid_block"),
        (
            {**GOOD, "lora_unet_x.lora_down.weight": A + 1},
            "has 1 of 3 keys for modules that a small network does not have, first lora_unet",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_is_refused(tensors: Tensors, reason: str, tmp_path: Path) -> None:
    path = lora.save(tmp_path / "a.safetensors", tensors)
    with pytest.raises(Unusable) as caught:
        read_adapter(path, SMALL)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"unet.lora_alpha": "2"}, "has the alpha '2'"),
        ({"unet.lora_alpha": float("nan")}, "has the alpha nan"),
        (
            {"unet.lora_alpha": 1, "unet.alpha_pattern": {"(a+)+$": 2}},
            "has a key in its alpha_pattern",
        ),
        ([1], "has lora_adapter_metadata that is not a JSON object"),
    ],
    ids=["text", "NaN", "regular expression", "list"],
)
def test_what_is_refused_in_metadata(config: Any, reason: str, tmp_path: Path) -> None:
    path = lora.save(tmp_path / "a.safetensors", GOOD, config)
    with pytest.raises(Unusable, match=reason.replace("(", r"\(")):
        read_adapter(path, SMALL)


class Trap:
    """What a pickle can do."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/nonexistent"),))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not a safetensors file"),
        (b"12345678", "is not a safetensors file"),
        (pickle.dumps(Trap()), "is not a safetensors file"),
        ((2**40).to_bytes(8, "little") + b"{", "is damaged or ends early"),
        (None, "is damaged or ends early"),
    ],
    ids=["empty", "short", "pickle", "header beyond the end", "truncated"],
)
def test_damaged_files(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = lora.save(tmp_path / "a.safetensors", GOOD)
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    with pytest.raises(Unusable, match=reason):
        read_adapter(path, SMALL)


def test_too_large_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as sparse:
        sparse.truncate(5 * 2**30)
    with pytest.raises(Unusable, match="has 5368709120 bytes"):
        read_adapter(path, SMALL)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(Unusable, match="is not a regular file"):
        read_adapter(tmp_path / "folder.safetensors", SMALL)


def test_a_mismatch_is_named(pipes: Callable[[str], DiffusionPipeline], tmp_path: Path) -> None:
    other = lora.random_pairs(pipes("sdxl"), modules=("to_k",), parts=("unet",))
    path = lora.save(tmp_path / "a.safetensors", lora.peft(other))
    ours = targets(pipes("sd15"))
    with pytest.raises(Unusable, match=r"has \d+ of \d+ keys for modules that .* does not have"):
        read_adapter(path, ours)
    same = {k: p for k, p in other.items() if f"{k[1]}.weight" in ours.shapes["unet"]}
    path = lora.save(tmp_path / "a.safetensors", lora.peft(same))
    with pytest.raises(Unusable, match=r"has shape \(.*\) for unet\.\w.*where this bundle's.*has"):
        read_adapter(path, ours)
    text = lora.random_pairs(pipes("sdxl"), modules=("q_proj",), parts=("text_encoder_2",))
    path = lora.save(tmp_path / "b.safetensors", lora.peft(text))
    with pytest.raises(Unusable, match="changes the network text_encoder_2"):
        read_adapter(path, ours)
    shaped = {
        f"{NAME}.lora_A.weight": torch.ones(2, 9, 1, 1),
        f"{NAME}.lora_B.weight": B[..., None, None],
    }
    path = lora.save(tmp_path / "c.safetensors", shaped)
    with pytest.raises(
        Unusable, match=r"has shape \(8, 9, 1, 1\) for unet.mid_block.* has \(64, 64, 1, 1\)"
    ):
        read_adapter(path, ours)


def test_metadata_is_read_from_the_header(tmp_path: Path) -> None:
    path = lora.save(tmp_path / "a.safetensors", GOOD, {"unet.lora_alpha": 5, "unet.r": 2})
    content = path.read_bytes()
    assert b"lora_adapter_metadata" in content[: int.from_bytes(content[:8], "little")]
    update = read_adapter(path, SMALL).updates["unet"][f"{NAME[5:]}.weight"]
    assert isinstance(update, LowRank)
    assert update.scale == 2.5
    assert json.dumps(read_adapter(path, SMALL).digest) != '""'
