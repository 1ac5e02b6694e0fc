"""Several exports at a time, and graphs that are not traced again."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.manifest import read_manifest
from tessera.variants import VARIANTS
from tessera_build import exporter
from tessera_build.captured import fingerprint
from tessera_build.export import export_graph
from tessera_build.exporter import exporting
from tessera_build.graphs import GraphSpec, graphs_of
from tests.fakes.checkpoint import controlnet
from tests.samples.bundles import CONTROL_WIDTHS, Small

Make = Callable[[str], Small]
QUICK = ("text_encoder", "vae_encoder", "controlnet_edges_hint")


def quick(made: Small) -> list[GraphSpec]:
    specs = graphs_of(made.pipe, VARIANTS["sd15"], {"edges": made.control}, lowrank=False)
    return [s for s in specs if s.name in QUICK]


@pytest.mark.parametrize("processes", [1, 2])
def test_graphs_and_layouts_are_those_of_any_number_of_processes(
    small: Make, tmp_path: Path, processes: int
) -> None:
    made = small("sd15")
    with exporting(quick(made), tmp_path, processes, tmp_path / "kept") as exported:
        layouts = {name: exported(name).layout for name in QUICK}
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

    monkeypatch.setattr(exporter, "capture_graph", full)
    with exporting(quick(small("sd15")), tmp_path, processes, tmp_path / "kept") as exported:
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
    expected = export_graph(twin.module, twin.signature, tmp_path / "expected.onnx")
    kept = tmp_path / "kept"
    with exporting([specs[graph], twin], tmp_path, 1, kept) as exported:
        assert [exported(s.name).layout for s in (specs[graph], twin)] == [expected] * 2
    assert len(list(kept.iterdir())) == 1
    content = (tmp_path / f"{twin.name}.onnx").read_bytes()
    assert content == (tmp_path / "expected.onnx").read_bytes()
    assert content != (tmp_path / f"{graph}.onnx").read_bytes()


def test_controlnets_that_differ_in_more_than_weights_are_exported_each(small: Make) -> None:
    made = small("sd15")
    options = {"conditioning_embedding_out_channels": CONTROL_WIDTHS}
    other = controlnet(made.pipe.unet, **options, controlnet_conditioning_channel_order="bgr")
    specs = graphs_of(made.pipe, VARIANTS["sd15"], {"edges": made.control, "other": other})
    assert len({fingerprint(s.module, s.signature) for s in specs}) == len(specs)


def test_a_kept_graph_is_not_traced_again(
    small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the same, byte for byte."""
    made = small("sd15")

    def export() -> bytes:
        with exporting(quick(made), tmp_path, 1, tmp_path / "kept") as exported:
            for name in QUICK:
                exported(name)
        return b"".join((tmp_path / f"{name}.onnx").read_bytes() for name in QUICK)

    first = export()
    monkeypatch.setattr(exporter, "capture_graph", None)
    assert export() == first
