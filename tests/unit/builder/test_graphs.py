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
from tessera_build.bundle import first_alike
from tessera_build.export import export_graph, reweight_graph
from tessera_build.graphs import graphs_of
from tests.fakes.checkpoint import controlnet
from tests.samples.bundles import CHOICES, CONTROL_WIDTHS
from tests.samples.graphs import Make


@pytest.mark.parametrize("half", ["unet_encoder", "unet_decoder"])
def test_halves_with_low_rank_inputs_share_the_weights_of_the_others(
    small: Make, half: str, tmp_path: Path
) -> None:
    made = small("sd15").bundle
    manifest, graph = read_manifest(made), f"{half}{LOWRANK}"
    data = f"graphs/{half}.onnx.data"
    assert manifest.files_of(graph) == [f"graphs/{graph}.onnx", f"graphs/{half}.onnx", data]
    assert manifest.files[f"graphs/{graph}.onnx"].bytes < manifest.files[data].bytes / 2
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


@pytest.mark.parametrize("graph", ["controlnet_edges", "controlnet_edges_hint"])
def test_another_controlnet_of_the_family_gets_the_graph_that_an_export_makes(
    small: Make, graph: str, tmp_path: Path
) -> None:
    """Byte for byte, though nothing is traced again."""
    made = small("sd15")
    other = controlnet(made.pipe.unet, conditioning_embedding_out_channels=CONTROL_WIDTHS)
    networks = {"edges": made.control, "other": other}
    specs = {s.name: s for s in graphs_of(made.pipe, VARIANTS["sd15"], networks, lowrank=False)}
    twin = specs[graph.replace("edges", "other")]
    expected = export_graph(twin.module, twin.signature, tmp_path / "exported.onnx")
    alike = {"controlnet_other": "controlnet_edges"}
    assert first_alike(specs.values()) == alike | {
        f"{k}_hint": f"{v}_hint" for k, v in alike.items()
    }
    layout = read_manifest(made.bundle).graphs[graph].layout
    assert layout == expected
    edges = made.bundle / "graphs" / f"{graph}.onnx"
    reweight_graph(edges, twin.module, expected, tmp_path / "reweighted.onnx")
    content = (tmp_path / "reweighted.onnx").read_bytes()
    assert content == (tmp_path / "exported.onnx").read_bytes()
    assert content != edges.read_bytes()


def test_controlnets_that_differ_in_more_than_weights_are_exported_each(small: Make) -> None:
    made = small("sd15")
    options = {"conditioning_embedding_out_channels": CONTROL_WIDTHS}
    other = controlnet(made.pipe.unet, **options, controlnet_conditioning_channel_order="bgr")
    specs = graphs_of(made.pipe, VARIANTS["sd15"], {"edges": made.control, "other": other})
    assert first_alike(specs) == {}
