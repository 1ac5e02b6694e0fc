"""Several exports at a time, and graphs that are not traced again."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.manifest import read_manifest
from tessera.variants import VARIANTS
from tessera_build import exporter
from tessera_build.export import export_graph, reweight_graph
from tessera_build.exporter import exporting, first_alike
from tessera_build.graphs import GraphSpec, graphs_of
from tests.fakes.checkpoint import controlnet
from tests.samples.bundles import CONTROL_WIDTHS, Small

Make = Callable[[str], Small]
QUICK = ("text_encoder", "unet_text", "controlnet_edges_hint")


def quick(made: Small) -> list[GraphSpec]:
    specs = graphs_of(made.pipe, VARIANTS["sd15"], {"edges": made.control}, lowrank=False)
    return [s for s in specs if s.name in QUICK]


@pytest.mark.parametrize("processes", [1, 2])
def test_graphs_and_layouts_are_those_of_any_number_of_processes(
    small: Make, tmp_path: Path, processes: int
) -> None:
    made = small("sd15")
    with exporting(quick(made), tmp_path, processes) as exported:
        layouts = {name: exported(name) for name in QUICK}
    for name, layout in layouts.items():
        assert layout == read_manifest(made.bundle).graphs[name].layout
        content = (tmp_path / f"{name}.onnx").read_bytes()
        assert content == (made.bundle / "graphs" / f"{name}.onnx").read_bytes()


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_any_process_is_raised(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    def full(*_: object, **options: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporter, "export_graph", full)
    with exporting(quick(small("sd15")), tmp_path, processes) as exported:
        with pytest.raises(OSError, match="No space left") as caught:
            exported("text_encoder")
        assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("graph", ["controlnet_edges", "controlnet_edges_hint"])
def test_another_controlnet_of_the_family_gets_the_graph_that_an_export_makes(
    small: Make, graph: str, tmp_path: Path
) -> None:
    """Byte for byte, though nothing is traced again."""
    made = small("sd15")
    other = controlnet(made.pipe.unet, conditioning_embedding_out_channels=CONTROL_WIDTHS)
    for parameter in other.parameters():
        parameter.data.mul_(1.5)
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
