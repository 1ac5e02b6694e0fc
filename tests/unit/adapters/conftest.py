"""Bundles with LoRAs in them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes import lora
from tests.samples.adapters import FILES
from tests.samples.bundles import Small


@pytest.fixture(scope="module")
def folders(
    small: Callable[[str], Small], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Bundles with the LoRAs in them."""
    made: dict[str, Path] = {}

    def get(variant: str) -> Path:
        if variant not in made:
            bundle = tmp_path_factory.mktemp(variant) / "bundle"
            shutil.copytree(small(variant).bundle, bundle)
            for seed, (name, (layout, rank, modules)) in enumerate(FILES.items()):
                pairs = lora.random_pairs(
                    small(variant).pipe, rank=rank, seed=seed, modules=modules, size=1.0
                )
                path = bundle / "adapters" / f"{name}.safetensors"
                lora.save(path, lora.LAYOUTS[layout](pairs))
            made[variant] = bundle
        return made[variant]

    return get
