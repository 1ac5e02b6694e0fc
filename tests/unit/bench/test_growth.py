"""Growth: slopes, and bundles with many ControlNets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bench import growth_servers
from bench.growth import draw, exponent


@pytest.mark.parametrize(
    ("seconds", "slope"), [([1.0, 5.0, 5.0], 0), ([1.0, 2.0, 4.0], 1), ([1.0, 1.0, 4.0], 2)]
)
def test_exponent(seconds: list[float], slope: float) -> None:
    assert exponent([10, 20, 40], seconds) == pytest.approx(slope)


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    found = {"loras": {"3": {"start": [1.0, 2.0]}, "30": {"start": [1.5]}}}
    draw(found, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width > 100


def test_all_controlnets_of_a_bundle_have_the_files_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = tmp_path / "demo"
    (demo / "graphs").mkdir(parents=True)
    names = ("unet_encoder", "controlnet_edges", "controlnet_edges_hint", "controlnet_other")
    graphs = {name: {"file": f"graphs/{name}.onnx"} for name in names}
    (demo / "bundle.json").write_text(json.dumps({"name": "demo", "graphs": graphs}))
    monkeypatch.setattr(growth_servers, "DEMO_BUNDLE", demo)
    bundle, made = growth_servers.many_controls(tmp_path / "many", 3)
    assert made == ["style-000", "style-001", "style-002"]
    assert (bundle / "graphs").resolve() == demo / "graphs"
    found = json.loads((bundle / "bundle.json").read_text())["graphs"]
    assert len(found) == 1 + 2 * 3
    assert found["controlnet_style-002_hint"] == graphs["controlnet_edges_hint"]
