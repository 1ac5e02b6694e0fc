"""Metadata that are nested deep name their file; the list of the others goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tessera.adapters.formats import read_adapter
from tessera.adapters.targets import Targets
from tessera.adapters.updates import Unusable

SMALL = Targets({"unet": {"a.weight": (8, 8)}}, "a small network")
DEEP = "[" * 100_000


def test_a_lora_whose_metadata_are_nested_deep(tmp_path: Path) -> None:
    tensors = {"unet.a.lora_A.weight": torch.ones(2, 8), "unet.a.lora_B.weight": torch.ones(8, 2)}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, {"lora_adapter_metadata": DEEP + "]" * len(DEEP)})
    with pytest.raises(Unusable, match="has lora_adapter_metadata that is not a JSON object"):
        read_adapter(path, SMALL)


def test_a_configuration_beside_it_that_is_nested_deep(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(DEEP + "]" * len(DEEP))
    with pytest.raises(Unusable, match="that is not a JSON object"):
        read_adapter(tmp_path / "adapter_model.safetensors", SMALL)
