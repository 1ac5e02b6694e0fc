"""Which graphs a bundle has, and what they share."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from tessera.engines.bundle import Bundle
from tessera.errors import BundleError
from tessera.manifest import (
    LOWRANK,
    read_manifest,
)
from tessera.variants import VARIANTS
from tessera_build.graphs import graphs_of
from tests.samples.bundles import CHOICES
from tests.samples.graphs import Make


@pytest.mark.parametrize("half", ["unet_encoder", "unet_decoder"])
def test_halves_with_low_rank_inputs_share_the_weights_of_the_others(
    small: Make, half: str, tmp_path: Path
) -> None:
    made = small("sd15").bundle
    manifest, graph = read_manifest(made), f"{half}{LOWRANK}"
    data = f"graphs/{half}.onnx.data"
    assert manifest.files_of(graph) == [f"graphs/{graph}.onnx", f"graphs/{half}.onnx", data]
    held = {i.name: i for i in _initializers(made, graph)}
    for initializer in _initializers(made, half):
        if initializer.name.endswith(".weight") and initializer.external_data:
            assert held[initializer.name] == initializer
    shutil.copytree(made, tmp_path / "bundle")
    with (tmp_path / "bundle" / data).open("r+b") as file:
        file.write(b"?")
    with pytest.raises(BundleError, match=r"onnx\.data is not the file of the manifest"):
        Bundle(tmp_path / "bundle").engine(graph)


def test_a_bundle_may_do_without_the_side_path(small: Make) -> None:
    made = small("sd15")
    names = {s.name for s in graphs_of(made.pipe, VARIANTS["sd15"], lowrank=False)}
    everything = {s.name for s in graphs_of(made.pipe, VARIANTS["sd15"])}
    assert everything - names == {f"unet_encoder{LOWRANK}", f"unet_decoder{LOWRANK}"}
    assert read_manifest(made.bundle).limits.lora_rank == CHOICES.lora_rank == 64


def _initializers(bundle: Path, graph: str) -> list[onnx.TensorProto]:
    model = onnx.load(bundle / "graphs" / f"{graph}.onnx", load_external_data=False)
    return list(model.graph.initializer)
