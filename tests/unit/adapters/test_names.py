"""What files call a module, and the same module whatever they call it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from tessera.adapters.formats import read_adapter
from tessera.adapters.names import original_names
from tessera.adapters.updates import LowRank, Unusable
from tessera.types import Tensors
from tests.fakes import lora
from tests.fakes.checkpoint import topology
from tests.fakes.single_file import original_unet_name
from tests.samples.targets import targets

PIPES = {name: topology(name) for name in ("sd15", "sd21", "sdxl")}
UNET, TEXT = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", "q_proj"


def original(name: str) -> str:
    config = PIPES["sdxl"].unet.config
    attends = ["CrossAttn" in kind for kind in config.up_block_types]
    return original_unet_name(f"{name}.weight", 2, attends).removesuffix(".weight")


@pytest.mark.parametrize("variant", PIPES)
def test_every_module_has_its_name_in_the_original_release(variant: str) -> None:
    unet = PIPES[variant].unet
    modules = {name.rpartition(".")[0] for name, _ in unet.named_parameters()}
    attends = ["CrossAttn" in kind for kind in unet.config.up_block_types]
    expected = {
        m: original_unet_name(f"{m}.weight", 2, attends).removesuffix(".weight") for m in modules
    }
    assert original_names(modules) == expected


def _text(prefix: str, model: str = "text_model.") -> Callable[[str], str]:
    return lambda module: f"{prefix}{model}{module.removeprefix('text_model.')}"


def _kohya(prefix: str, name: Callable[[str], str] = str) -> Callable[[str], str]:
    return lambda module: f"{prefix}_{name(module).replace('.', '_')}"


A_AND_B, DOWN_AND_UP = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
SCHEMES: dict[str, tuple[Callable[[str], str], Callable[[str], str], tuple[str, str]]] = {
    "kohya": (_kohya("lora_unet"), _kohya("lora_te2", _text("")), DOWN_AND_UP),
    "kohya, original names": (
        _kohya("lora_unet", original),
        _kohya("lora_te2", _text("")),
        DOWN_AND_UP,
    ),
    "kohya, prefixless text encoder": (_kohya("lora_unet"), _kohya("lora_te2"), DOWN_AND_UP),
    "LyCORIS": (_kohya("lycoris"), _kohya("lora_te2", _text("")), DOWN_AND_UP),
    "ComfyUI": (
        lambda m: f"diffusion_model.{original(m)}",
        _text("text_encoders.clip_g.transformer."),
        DOWN_AND_UP,
    ),
    "ComfyUI, PEFT's ends": (
        lambda m: f"diffusion_model.{original(m)}",
        _text("clip_g.transformer."),
        A_AND_B,
    ),
    "ComfyUI, diffusers' names": (lambda m: f"diffusion_model.{m}", _text("clip_g."), A_AND_B),
    "unet, original names": (
        lambda m: f"unet.{original(m)}",
        _text("text_encoder_2."),
        DOWN_AND_UP,
    ),
    "PEFT": (lambda m: f"unet.{m}", _text("text_encoder_2.", ""), A_AND_B),
    "PEFT's wrapper outside": (
        lambda m: f"base_model.model.unet.{m}",
        _text("base_model.model.text_encoder_2."),
        A_AND_B,
    ),
    "PEFT's wrapper inside": (
        lambda m: f"unet.base_model.model.{m}",
        _text("text_encoder_2.base_model.model."),
        A_AND_B,
    ),
    "PEFT's state": (
        lambda m: f"base_model.model.{m}",
        _text("text_encoder_2.", ""),
        ("lora_A.default.weight", "lora_B.default.weight"),
    ),
    "diffusers": (
        lambda m: f"unet.{m}",
        _text("text_encoder_2."),
        ("lora.down.weight", "lora.up.weight"),
    ),
    "diffusers, linear": (
        lambda m: f"unet.{m}",
        _text("text_encoder_2."),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    ),
    "bare": (str, _text("text_encoder_2."), A_AND_B),
}
"""Scheme -> what it calls a module of the UNet and of the second text encoder, ends of the keys."""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_whatever_a_module_is_called(scheme: str, tmp_path: Path) -> None:
    """Each layer of the UNet and of a text encoder."""
    pipe = PIPES["sdxl"]
    of_unet, of_text, (down, up) = SCHEMES[scheme]
    pairs = lora.random_pairs(pipe, modules=("",), parts=("unet", "text_encoder_2"))
    name_of = {"unet": of_unet, "text_encoder_2": of_text}
    tensors = {}
    for (part, module), pair in pairs.items():
        tensors[f"{name_of[part](module)}.{down}"] = pair.down
        tensors[f"{name_of[part](module)}.{up}"] = pair.up
    found = read_adapter(lora.save(tmp_path / "a.safetensors", tensors), targets(pipe)).updates
    assert sum(len(updates) for updates in found.values()) == len(pairs)
    for (part, module), pair in pairs.items():
        update = found[part][f"{module}.weight"]
        assert isinstance(update, LowRank)
        assert torch.equal(update.down, pair.down)
        assert torch.equal(update.up, pair.up)
        assert update.scale == 1.0


def _one(pipe: DiffusionPipeline, part: str, module: str) -> lora.Pair:
    return lora.random_pairs(pipe, modules=(module,), parts=(part,))[part, module]


@pytest.mark.parametrize(
    "stem",
    ["{}.processor.to_out_lora", "unet.{}.processor.to_out_lora", "unet.{}.to_out.lora"],
    ids=["bare processors", "processors", "no index"],
)
def test_attention_processors(stem: str, tmp_path: Path) -> None:
    pair = _one(PIPES["sdxl"], "unet", UNET)
    key = stem.format(UNET.removesuffix(".to_out.0"))
    tensors = {f"{key}.down.weight": pair.down, f"{key}.up.weight": pair.up}
    path = lora.save(tmp_path / "a.safetensors", tensors)
    assert set(read_adapter(path, targets(PIPES["sdxl"])).updates["unet"]) == {f"{UNET}.weight"}


def test_a_bare_text_encoder_is_one_of_one(tmp_path: Path) -> None:
    """With two encoders, nothing says which one is meant."""
    module = "encoder.layers.0.self_attn.q_proj"
    pair = _one(PIPES["sd15"], "text_encoder", module)
    stem = f"base_model.model.text_model.{module}"
    tensors = {f"{stem}.lora_A.weight": pair.down, f"{stem}.lora_B.weight": pair.up}
    path = lora.save(tmp_path / "a.safetensors", tensors)
    found = read_adapter(path, targets(PIPES["sd15"])).updates
    assert set(found["text_encoder"]) == {f"{module}.weight"}
    with pytest.raises(Unusable, match=f"first {stem}.lora_A.weight"):
        read_adapter(path, targets(PIPES["sdxl"]))


def test_the_whole_unet_as_onetrainer_writes_it(tmp_path: Path) -> None:
    """Diffusers' converter turns both layers of `add_embedding` into one name."""
    pipe = PIPES["sdxl"]
    pairs = lora.random_pairs(pipe, modules=("",), parts=("unet",))
    tensors: Tensors = {}
    for (_, module), pair in pairs.items():
        stem = f"lora_unet_{module.replace('.', '_')}"
        tensors |= {f"{stem}.lora_down.weight": pair.down, f"{stem}.lora_up.weight": pair.up}
        tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    tensors["bundle_emb.token.clip_l"] = torch.ones(1, 24)
    file = read_adapter(lora.save(tmp_path / "a.safetensors", tensors), targets(pipe))
    assert len(file.updates["unet"]) == len(pairs)
    assert {"add_embedding.linear_1.weight", "time_embedding.linear_2.weight"} <= set(
        file.updates["unet"]
    )
    assert file.skipped == ("1 bundled embeddings (bundle_emb)",)


def test_the_wrong_key_is_named(tmp_path: Path) -> None:
    pipe = PIPES["sdxl"]
    pairs = lora.random_pairs(pipe, modules=("to_q",), parts=("unet",))
    tensors = lora.kohya(pairs) | {"bundle_emb.a.clip_l": torch.ones(2)}
    wrong = "lora_unet_mid_block_attentions_7_proj_in.lora_down.weight"
    tensors[wrong] = torch.ones(2, 8)
    with pytest.raises(Unusable, match=f"has 1 of {len(tensors) - 1} keys .* first {wrong}"):
        read_adapter(lora.save(tmp_path / "a.safetensors", tensors), targets(pipe))
