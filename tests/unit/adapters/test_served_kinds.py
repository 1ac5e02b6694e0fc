"""Requests with adapters of every kind through the models, against diffusers' pipeline with weights
that were merged by the published formulas.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import kinds, lora
from tests.fakes.kinds import Kind, ManyDeltas
from tests.fakes.models import Models, models_of
from tests.samples.adapters import COMMON, apart, by_formulas, loras
from tests.samples.bundles import Small

LINEAR = (*lora.ATTENTION, "proj_in", "net.0.proj", "net.2", "fc1")


def _everywhere(kind: Kind, *more: str) -> Mapping[str, Kind]:
    return dict.fromkeys((*LINEAR, *more), kind)


KINDS: dict[str, Mapping[str, Kind]] = {
    "dora": _everywhere(kinds.dora, "conv1"),
    "loha": _everywhere(kinds.loha),
    "lokr": {**_everywhere(kinds.lokr), "conv1": kinds.lokr_with_core},
    "ia3": _everywhere(kinds.ia3, "conv2"),
    "full": {
        **dict.fromkeys(("norm1", "norm2", "norm3", "layer_norm1", "conv_norm_out"), kinds.norm),
        **dict.fromkeys(("to_v", "v_proj", "conv_in", "conv_out", "linear_1"), kinds.full),
        **dict.fromkeys(("token_embedding", "position_embedding"), kinds.full),
    },
    "c3lier": {**_everywhere(kinds.lora), "conv1": kinds.locon_with_core, "conv2": kinds.lora},
}
ON_SIDE = {"c3lier", "loha", "lokr"}
"""Those that are low-rank products within the bundle's rank."""


@pytest.fixture(scope="module")
def files(
    small: Callable[[str], Small], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, dict[str, ManyDeltas]]]:
    """Bundles with a file of each kind, and what these do."""
    made: dict[str, tuple[Path, dict[str, ManyDeltas]]] = {}

    def get(variant: str) -> tuple[Path, dict[str, ManyDeltas]]:
        if variant not in made:
            bundle = tmp_path_factory.mktemp(variant) / "bundle"
            shutil.copytree(small(variant).bundle, bundle)
            deltas = {}
            for seed, (name, parts) in enumerate(KINDS.items()):
                tensors, deltas[name] = kinds.whole_file(small(variant).pipe, parts, seed)
                lora.save(bundle / "adapters" / f"{name}.safetensors", tensors)
            made[variant] = bundle, deltas
        return made[variant]

    return get


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def models(
    variant: str,
    files: Callable[[str], tuple[Path, dict[str, ManyDeltas]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Models]:
    """Models that use the side path whenever they can."""
    board = tmp_path_factory.mktemp("board") / "board"
    with models_of(files(variant)[0], board, TESSERA_LORA_PATH="side") as models:
        yield models


@pytest.mark.parametrize(
    "chosen",
    [*([(name, 0.7)] for name in KINDS), [("dora", 0.6), ("lokr", -0.4), ("full", 0.8)]],
    ids=[*KINDS, "three"],
)
def test_pictures_are_those_of_merged_weights(
    models: Models,
    variant: str,
    files: Callable[[str], tuple[Path, dict[str, ManyDeltas]]],
    chosen: list[tuple[str, float]],
) -> None:
    bundle, deltas = files(variant)
    expected = by_formulas(variant, bundle, [(deltas[n], w) for n, w in chosen], 3)
    plain = models.generate(**COMMON, SEED=3, GUIDANCE=4.0)
    served = models.generate(**COMMON, SEED=3, GUIDANCE=4.0, LORAS=loras(*chosen))
    assert apart(served.image, plain.image) > 10, "no effect would prove nothing"
    assert apart(served.image, expected) <= 2
    on_side = {name for name, _ in chosen} <= ON_SIDE
    assert served.info["lora_path"] == ("side" if on_side else "refit")
    found = {kind for entry in served.info["loras"] for kind in entry["kinds"]}
    assert found == {"lora" if name == "c3lier" else name for name, _ in chosen}


def test_a_b_a_and_the_base_again(models: Models) -> None:
    """Every kind between two others, with nothing left behind."""
    order: list[Any] = [(), *(((name, 0.7),) for name in KINDS)]
    first = [models.generate(**COMMON, SEED=2, LORAS=loras(*w)).image for w in order]
    again = [models.generate(**COMMON, SEED=2, LORAS=loras(*w)).image for w in reversed(order)]
    for one, other in zip(first, reversed(again), strict=True):
        assert np.array_equal(one, other)
    assert len({picture.tobytes() for picture in first}) == len(order)


def test_eight_mixed_requests_equal_their_solo_runs(models: Models) -> None:
    sets: list[Any] = [
        (), *(((name, 0.7),) for name in KINDS), (("loha", 0.5), ("ia3", 0.5)),
    ]  # fmt: skip
    requests = [{**COMMON, "SEED": i, "LORAS": loras(*s)} for i, s in enumerate(sets)]
    alone = [models.generate(**r) for r in requests]
    together = models.together([dict(r) for r in requests])
    for one, other in zip(alone, together, strict=True):
        assert apart(one.image, other.image) <= 1
    paths = [picture.info["lora_path"] for picture in together]
    assert paths.count("side") == len(ON_SIDE)
    assert paths.count("refit") == len(sets) - 1 - len(ON_SIDE)
