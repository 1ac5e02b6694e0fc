"""LoRA files in the forms that people have reported (docs/internals/files-tried.md), with random
weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from tessera.adapters.formats import read_adapter
from tessera.adapters.updates import LowRank, Unusable
from tessera.types import Tensors
from tests.fakes import lora
from tests.fakes.checkpoint import topology
from tests.fakes.single_file import write_single_file
from tests.samples.targets import targets


@pytest.fixture(scope="module")
def pipes() -> Callable[[str], DiffusionPipeline]:
    made: dict[str, DiffusionPipeline] = {}

    def get(variant: str) -> DiffusionPipeline:
        return made.setdefault(variant, made.get(variant) or topology(variant))

    return get


def assert_whole(pipe: DiffusionPipeline, path: Path, pairs: lora.Pairs, scale: float) -> None:
    """Every pair of the file is applied, and nothing else."""
    updates = read_adapter(path, targets(pipe)).updates
    found = {(part, name): u for part, named in updates.items() for name, u in named.items()}
    assert found.keys() == {(part, f"{module}.weight") for part, module in pairs}
    for (part, module), pair in pairs.items():
        update = found[part, f"{module}.weight"]
        assert isinstance(update, LowRank)
        made = update.scale * (update.up.flatten(1) @ update.down.flatten(1))
        truth = scale * (pair.up.flatten(1) @ pair.down.flatten(1))
        torch.testing.assert_close(made, truth)


def named_adapter(name: str) -> Callable[[lora.Pairs], Tensors]:
    """PEFT's state as it is, with the adapter's name in the keys."""

    def made(pairs: lora.Pairs) -> Tensors:
        return {
            key.replace(".weight", f".{name}.weight"): tensor
            for key, tensor in lora.peft(pairs).items()
        }

    return made


def bare_processors(pairs: lora.Pairs) -> Tensors:
    return {k.removeprefix("unet."): t for k, t in lora.diffusers_old(pairs).items()}


def dots_and_kohya_ends(pairs: lora.Pairs) -> Tensors:
    ends = {"lora_A": "lora_down", "lora_B": "lora_up"}
    found = {}
    for key, tensor in lora.peft(pairs).items():
        for theirs, kohyas in ends.items():
            key = key.replace(theirs, kohyas)
        found[key.removeprefix("unet.")] = tensor
    return found


def lycoris(pairs: lora.Pairs) -> Tensors:
    return {k.replace("lora_unet_", "lycoris_"): t for k, t in lora.kohya(pairs, 4.0).items()}


UNET = ("unet",)


@pytest.mark.parametrize(
    ("write", "variant", "parts"),
    [
        (named_adapter("default_0"), "sdxl", UNET),
        (named_adapter("my-style"), "sd15", ("unet", "text_encoder")),
        (bare_processors, "sd15", UNET),
        (dots_and_kohya_ends, "sd15", UNET),
        (lycoris, "sdxl", UNET),
    ],
    ids=["default_0", "own name", "AnimateDiff", "dots", "SimpleTuner"],
)
def test_names_that_are_read(
    pipes: Callable[[str], DiffusionPipeline],
    tmp_path: Path,
    write: Callable[[lora.Pairs], Tensors],
    variant: str,
    parts: tuple[str, ...],
) -> None:
    pairs = lora.random_pairs(pipes(variant), parts=parts)
    path = lora.save(tmp_path / "a.safetensors", write(pairs))
    assert_whole(pipes(variant), path, pairs, 1.0)


def test_onetrainer_s_projection_of_the_second_text_encoder(
    pipes: Callable[[str], DiffusionPipeline], tmp_path: Path
) -> None:
    pairs = lora.random_pairs(
        pipes("sdxl"), modules=("text_projection",), parts=("text_encoder_2",)
    )
    assert len(pairs) == 1
    tensors = lora.kohya(pairs, 4.0)
    assert any(key.startswith("lora_te2_text_projection.") for key in tensors)
    path = lora.save(tmp_path / "a.safetensors", tensors)
    assert_whole(pipes("sdxl"), path, pairs, 1.0)


def test_another_rank_for_each_module_in_bfloat16(
    pipes: Callable[[str], DiffusionPipeline], tmp_path: Path
) -> None:
    """As svd_merge_lora.py and resize_lora.py write them."""
    tensors: Tensors = {}
    pairs: lora.Pairs = {}
    for number, (place, pair) in enumerate(lora.random_pairs(pipes("sd15"), rank=8).items()):
        rank = number % 8 + 1
        small = lora.Pair(pair.down[:rank].bfloat16(), pair.up[:, :rank].bfloat16())
        pairs[place] = lora.Pair(small.down.float(), small.up.float())
        tensors |= lora.kohya({place: small}, float(rank))
    path = lora.save(tmp_path / "a.safetensors", tensors)
    updates = read_adapter(path, targets(pipes("sd15"))).updates
    assert sum(map(len, updates.values())) == len(pairs)
    for (part, module), pair in pairs.items():
        update = updates[part][f"{module}.weight"]
        assert isinstance(update, LowRank)
        made = update.up.float().flatten(1) @ update.down.float().flatten(1)
        torch.testing.assert_close(made * update.scale, pair.up.flatten(1) @ pair.down.flatten(1))


ONE = torch.ones(2, 2)


def pair_of(stem: str) -> Tensors:
    ends = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(8, 2)}
    return {f"{stem}.{end}": tensor for end, tensor in ends.items()}


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (pair_of("lora_unet_single_blocks_33_linear1"), "is a LoRA of a diffusion transformer"),
        (
            {"lora_unet_mid_block_attentions_0_proj_in.oft_blocks": torch.ones(2, 4, 4)},
            "is an OFT",
        ),
        (
            {f"lora_unet_mid_block.{end}.weight": torch.ones(2, 2) for end in ("a1", "b1")},
            "is a GLoRA",
        ),
        (
            {"base_model.model.mid_block.x.vera_lambda_b": torch.ones(2)},
            "is a VeRA",
        ),
        ({"base_model.model.mid_block.x.lora_E": torch.ones(2, 1)}, "is an AdaLoRA"),
        ({"base_model.model.mid_block.x.fourierft_spectrum": torch.ones(2)}, "is a FourierFT"),
        ({"base_model.model.mid_block.x.hra_u": torch.ones(8, 2)}, "is an HRA"),
        ({"mid_block.x.boft_R": torch.ones(1, 2, 4, 4)}, "is an OFT"),
        (
            {"lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight": ONE},
            "is a ControlNet-LLLite",
        ),
        ({"body.0.block1.weight": ONE}, "is a T2I-Adapter"),
        ({"image_proj.proj.weight": ONE}, "is an IP-Adapter"),
        ({"control_model.zero_convs.0.0.weight": ONE}, "is a ControlNet"),
        (
            pair_of("diffusion_model.layers.0.attention.to_q"),
            "has 2 of 2 keys for modules that",
        ),
    ],
    ids=[
        *("Flux, single blocks", "OFT", "GLoRA", "VeRA", "AdaLoRA", "FourierFT", "HRA", "BOFT"),
        *("LLLite", "T2I-Adapter", "IP-Adapter", "ControlNet", "Z-Image"),
    ],
)
def test_other_kinds_are_refused_by_name(
    pipes: Callable[[str], DiffusionPipeline], tmp_path: Path, tensors: Tensors, reason: str
) -> None:
    path = lora.save(tmp_path / "a.safetensors", tensors)
    with pytest.raises(Unusable, match=reason):
        read_adapter(path, targets(pipes("sd15")))


def test_a_lora_of_another_family_is_refused(
    pipes: Callable[[str], DiffusionPipeline], tmp_path: Path
) -> None:
    pairs = lora.random_pairs(pipes("sd15"), parts=UNET)
    path = lora.save(tmp_path / "a.safetensors", lora.kohya(pairs))
    with pytest.raises(Unusable, match=r"has \d+ of \d+ keys for modules that"):
        read_adapter(path, targets(pipes("sdxl")))


@pytest.mark.parametrize("variant", ["sd15", "sdxl"])
def test_a_checkpoint_among_the_loras_is_called_one(
    pipes: Callable[[str], DiffusionPipeline], tmp_path: Path, variant: str
) -> None:
    pipe = pipes(variant)
    write_single_file(pipe, tmp_path / "whole.safetensors")
    pipe.unet.save_pretrained(tmp_path / "unet")
    for path in (tmp_path / "whole.safetensors", *(tmp_path / "unet").glob("*.safetensors")):
        with pytest.raises(Unusable, match="is a checkpoint, or a network of one; accepted: LoRA"):
            read_adapter(path, targets(pipe))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of git-lfs"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page"),
    ],
    ids=["git-lfs", "page"],
)
def test_what_a_download_left_behind(
    pipes: Callable[[str], DiffusionPipeline], tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(Unusable, match=reason):
        read_adapter(path, targets(pipes("sd15")))
