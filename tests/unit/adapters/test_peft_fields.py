"""PEFT's configurations: every field is applied, without effect, or rejected by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig

from tessera.adapters import peft_fields
from tessera.adapters.formats import read_adapter
from tessera.adapters.targets import Targets
from tessera.adapters.updates import Unusable
from tests.fakes import lora

TARGETS = Targets({"unet": {"linear.weight": (12, 16)}}, "a small network")
TABLES = (
    peft_fields.APPLIED,
    peft_fields.BY_TENSORS,
    peft_fields.WITHOUT_EFFECT,
    peft_fields.ACCEPTED.keys(),
)
CLASSES = (LoraConfig, LoHaConfig, LoKrConfig, IA3Config)
HALVES = {
    "base_model.model.linear.lora_A.weight": torch.ones(2, 16),
    "base_model.model.linear.lora_B.weight": torch.ones(12, 2),
}


def test_every_field_of_peft_is_in_one_table() -> None:
    """A field that a later PEFT adds fails here, and so does one taken out of a table."""
    fields = {f.name for cls in CLASSES for f in dataclasses.fields(cls)}
    held = [name for table in TABLES for name in table]
    assert sorted(held) == sorted(fields)


@pytest.mark.parametrize("where", ["beside", "in the header"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("use_qalora", True),
        ("layer_replication", [[0, 4], [2, 6]]),
    ],
)
def test_what_changes_more_than_the_tensors_say_is_refused(
    field: str, value: Any, where: str, tmp_path: Path
) -> None:
    config: dict[str, Any] = {"lora_alpha": 2, "r": 2, field: value}
    if where == "beside":
        path = lora.save(tmp_path / "adapter_model.safetensors", HALVES)
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    else:
        metadata = {f"unet.{key}": each for key, each in config.items()}
        path = lora.save(tmp_path / "a.safetensors", HALVES, metadata)
    with pytest.raises(Unusable, match=rf"has {field} .* in its configuration; accepted: "):
        read_adapter(path, TARGETS)


@pytest.mark.parametrize("value", ["gaussian", "eva", True, False])
def test_other_beginnings_of_a_training_are_read(value: Any, tmp_path: Path) -> None:
    path = lora.save(tmp_path / "a.safetensors", HALVES, {"unet.init_lora_weights": value})
    assert read_adapter(path, TARGETS).kinds == ("lora",)
