"""Graphs that are kept from build to build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from tessera.variants import VARIANTS
from tessera_build import captured
from tessera_build.captured import CapturedGraphs, fingerprint
from tessera_build.checkpoint import open_checkpoint
from tessera_build.graphs import graphs_of
from tests.fakes.checkpoint import topology

GRAPH = (b"a graph\nof bytes\x00\xff", {"weight": {"Transpose": [1, 0]}})


def keys_of(pipe: DiffusionPipeline, variant: str, **options: Any) -> Mapping[str, str]:
    specs = graphs_of(pipe, VARIANTS[variant], **options)
    return {spec.name: fingerprint(spec.module, spec.signature) for spec in specs}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fine_tune_in_any_precision_has_the_same_graphs(variant: str, tmp_path: Path) -> None:
    pipe = topology(variant)
    first = keys_of(pipe, variant)
    assert len(set(first.values())) == len(first)
    for parameter in pipe.unet.parameters():
        parameter.data.mul_(1.5)
    pipe.save_pretrained(tmp_path)
    again, _ = open_checkpoint(tmp_path, config=None, precision="fp16")
    assert keys_of(again, variant, precision="fp16") == first


CHANGES: list[tuple[str, Any]] = [
    ("norm_eps", 1e-4),
    ("act_fn", "gelu"),
    ("flip_sin_to_cos", False),
    ("freq_shift", 1),
    ("center_input_sample", True),
    ("resnet_time_scale_shift", "scale_shift"),
    ("attention_head_dim", 4),
    ("conv_in_kernel", 5),
]


@pytest.mark.parametrize(("field", "value"), CHANGES)
def test_another_configuration_has_others(field: str, value: Any) -> None:
    """Also where no parameter has another shape."""
    pipe = topology("sd15")
    first = keys_of(pipe, "sd15")
    config = dict(pipe.unet.config)
    assert config[field] != value
    pipe.unet = UNet2DConditionModel.from_config(config | {field: value})
    other = keys_of(pipe, "sd15")
    assert {name for name in first if first[name] != other[name]} >= {"unet_encoder"}
    assert other["vae_decoder"] == first["vae_decoder"]


def test_a_value_in_a_buffer_or_an_attribute_counts() -> None:
    pipe = topology("sd15")
    spec = next(s for s in graphs_of(pipe, VARIANTS["sd15"]) if s.name == "unet_encoder")
    module: Any = spec.module
    keys = [fingerprint(module, spec.signature)]
    module.register_buffer("more", torch.ones(2))
    keys.append(fingerprint(module, spec.signature))
    module.more[0] = 2.0
    keys.append(fingerprint(module, spec.signature))
    module.down_blocks[0].resnets[0].output_scale_factor = 2.0
    keys.append(fingerprint(module, spec.signature))
    assert len(set(keys)) == 4
    assert fingerprint(module, spec.signature) == keys[3]


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    CapturedGraphs(tmp_path / "new").put("key", GRAPH)
    assert CapturedGraphs(tmp_path / "new").get("key") == GRAPH
    assert CapturedGraphs(tmp_path / "new").get("other") is None


@pytest.mark.parametrize("damage", [b"", b"no lines", b"x\n{}\ngraph"])
def test_damaged_graphs_are_not_taken(tmp_path: Path, damage: bytes) -> None:
    kept = CapturedGraphs(tmp_path)
    kept.put("key", GRAPH)
    whole = (tmp_path / "key").read_bytes()
    for content in (damage, whole[:-1], whole.replace(b"of", b"OF")):
        (tmp_path / "key").write_bytes(content)
        assert kept.get("key") is None


def test_a_folder_that_cannot_be_made_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kept = CapturedGraphs(tmp_path / "file" / "graphs")
    kept.put("key", GRAPH)
    assert kept.get("key") is None


def test_those_used_longest_ago_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = CapturedGraphs(tmp_path)
    kept.put("first", GRAPH)
    size = (tmp_path / "first").stat().st_size
    monkeypatch.setattr(captured, "_MOST_BYTES", 2 * size)
    kept.put("second", GRAPH)
    assert kept.get("first") == GRAPH
    kept.put("third", GRAPH)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "third"]
