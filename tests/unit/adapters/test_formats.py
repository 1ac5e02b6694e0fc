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

from tessera.adapters.formats import MAX_RANK, Unusable, read_adapter
from tessera.adapters.merge import merge
from tessera.adapters.targets import Targets
from tessera.networks.walk import weights_of
from tessera.types import Tensors
from tests.fakes import lora
from tests.fakes.checkpoint import topology

PARTS = ("unet", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def pipes() -> Callable[[str], DiffusionPipeline]:
    """Pipelines that no test changes."""
    made: dict[str, DiffusionPipeline] = {}

    def get(variant: str) -> DiffusionPipeline:
        return made.setdefault(variant, made.get(variant) or topology(variant))

    return get


def targets(pipe: DiffusionPipeline) -> Targets:
    parts = {p: getattr(pipe, p) for p in PARTS if hasattr(pipe, p)}
    shapes = {part: weights_of(network) for part, network in parts.items()}
    return Targets(shapes, "these networks", 2 if len(shapes) > 2 else None)


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
    updates = what.fit(read_adapter(path, layers_per_block=what.layers_per_block))
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
    assert read_adapter(path, layers_per_block=2).layout == layout.removesuffix("-old")


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
    updates = targets(pipe).fit(read_adapter(path, layers_per_block=2))
    assert set(updates["unet"]) == {f"{name}.weight"}
    assert updates["unet"][f"{name}.weight"].scale == 2.0 / 4


def test_each_module_has_its_own_alpha(
    pipes: Callable[[str], DiffusionPipeline], tmp_path: Path
) -> None:
    """Where diffusers 0.42.1 applies the commonest alpha to all attention weights."""
    pairs = lora.random_pairs(pipes("sd15"), modules=("attn1.to_q", "conv1", "fc1", "q_proj"))
    tensors = lora.kohya(pairs)
    alphas = [k for k in tensors if k.endswith(".alpha")]
    tensors |= {key: torch.tensor(float(i + 1)) for i, key in enumerate(alphas)}
    file = read_adapter(lora.save(tmp_path / "a.safetensors", tensors))
    found = targets(pipes("sd15")).fit(file)
    scales = {(p, m): found[p][f"{m}.weight"].scale for p, m in pairs}
    assert scales == {key: (i + 1) / 4 for i, key in enumerate(pairs)}


A, B = torch.ones(2, 8), torch.ones(8, 2)
NAME = "unet.mid_block.attentions.0.proj_in"
GOOD = {f"{NAME}.lora_A.weight": A, f"{NAME}.lora_B.weight": B}


def _nan(value: float) -> torch.Tensor:
    tensor = A.clone()
    tensor[1, 3] = value
    return tensor


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "is empty"),
        ({"lora_unet_x.hada_w1_a": A}, "is a LoHa"),
        ({"lora_unet_x.lokr_w1": A}, "is a LoKr"),
        ({"lora_unet_x.lora_mid.weight": A}, "is a LoCon with a Tucker core"),
        ({**GOOD, f"{NAME}.lora_magnitude_vector": A + 1}, "is a DoRA"),
        ({"lora_unet_x.dora_scale": A}, "is a DoRA"),
        ({"lora_unet_x.diff": A}, "is a LyCORIS file with full differences"),
        ({"lora_unet_x.oft_blocks": A}, "is an OFT"),
        ({**GOOD, f"{NAME}.lora_B.bias": torch.ones(8)}, "is a LoRA with biases"),
        ({"model.diffusion_model.conv": A}, "has the key model.diffusion_model.conv"),
        (
            {**GOOD, f"{NAME}.lora_A.weight": _nan(torch.nan)},
            "has NaN or infinite values in unet.mid_block",
        ),
        (
            {**GOOD, f"{NAME}.lora_A.weight": _nan(torch.inf)},
            "has NaN or infinite values in unet.mid_block",
        ),
        ({**GOOD, f"{NAME}.lora_A.weight": A.to(torch.int8)}, "has unet.mid_block"),
        ({f"{NAME}.lora_A.weight": A}, "lacks the second half of unet.mid_block"),
        ({**GOOD, f"{NAME}.lora_B.weight": B.T}, "has halves of shapes (2, 8) and (2, 8)"),
        ({f"{NAME}.lora_B.weight": B}, "has 1 tensors, of which only 0 form pairs"),
        (
            {
                f"{NAME}.lora_A.weight": torch.ones(MAX_RANK + 1, 2),
                f"{NAME}.lora_B.weight": torch.ones(2, MAX_RANK + 1),
            },
            f"has rank {MAX_RANK + 1}",
        ),
        ({"lora_unet_x.lora_down.weight": A}, "has keys that diffusers cannot convert"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_is_refused(tensors: Tensors, reason: str, tmp_path: Path) -> None:
    path = lora.save(tmp_path / "a.safetensors", tensors)
    with pytest.raises(Unusable) as caught:
        read_adapter(path)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"unet.lora_alpha": "2"}, "has the alpha '2'"),
        ({"unet.lora_alpha": float("nan")}, "has the alpha nan"),
        ({"unet.lora_alpha": 1, "unet.alpha_pattern": {"(a+)+$": 2}}, "has an alpha_pattern"),
        ([1], "has lora_adapter_metadata that is not a JSON object"),
    ],
    ids=["text", "NaN", "regular expression", "list"],
)
def test_what_is_refused_in_metadata(config: Any, reason: str, tmp_path: Path) -> None:
    path = lora.save(tmp_path / "a.safetensors", GOOD, config)
    with pytest.raises(Unusable, match=reason.replace("(", r"\(")):
        read_adapter(path)


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
        read_adapter(path)


def test_too_large_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as sparse:
        sparse.truncate(5 * 2**30)
    with pytest.raises(Unusable, match="has 5368709120 bytes"):
        read_adapter(path)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(Unusable, match="is not a regular file"):
        read_adapter(tmp_path / "folder.safetensors")


def test_the_first_mismatch_is_named(
    pipes: Callable[[str], DiffusionPipeline], tmp_path: Path
) -> None:
    other = lora.random_pairs(pipes("sdxl"), modules=("to_k",), parts=("unet",))
    path = lora.save(tmp_path / "a.safetensors", lora.peft(other))
    with pytest.raises(Unusable) as caught:
        targets(pipes("sd15")).fit(read_adapter(path))
    own = weights_of(pipes("sd15").unet)
    theirs = {name: (pair.up.shape[0], *pair.down.shape[1:]) for (_, name), pair in other.items()}
    first = next(n for n in sorted(theirs) if own.get(f"{n}.weight") != theirs[n])
    assert f"has shape {theirs[first]} for unet.{first}.weight" in str(caught.value)
    text = lora.random_pairs(pipes("sdxl"), modules=("q_proj",), parts=("text_encoder_2",))
    path = lora.save(tmp_path / "b.safetensors", lora.peft(text))
    with pytest.raises(Unusable, match="changes the network text_encoder_2"):
        targets(pipes("sd15")).fit(read_adapter(path))
    shaped = {
        f"{NAME}.lora_A.weight": torch.ones(2, 9, 1, 1),
        f"{NAME}.lora_B.weight": B[..., None, None],
    }
    path = lora.save(tmp_path / "c.safetensors", shaped)
    with pytest.raises(
        Unusable, match=r"has shape \(8, 9, 1, 1\) for unet.mid_block.* has \(64, 64, 1, 1\)"
    ):
        targets(pipes("sd15")).fit(read_adapter(path))


def test_metadata_is_read_from_the_header(tmp_path: Path) -> None:
    path = lora.save(tmp_path / "a.safetensors", GOOD, {"unet.lora_alpha": 5, "unet.r": 2})
    content = path.read_bytes()
    assert b"lora_adapter_metadata" in content[: int.from_bytes(content[:8], "little")]
    assert read_adapter(path).updates["unet"][f"{NAME[5:]}.weight"].scale == 2.5
    assert json.dumps(read_adapter(path).digest) != '""'
