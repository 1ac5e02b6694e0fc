"""Every measurement that needs no server, on small networks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch

SPARSE = {"mask", "dense", "sparse", "gather", "copy+gather", "speed-up", "error"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads only wait for each other when networks are this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("module", "variant", "columns"),
    [
        ("machine", "sd15", {"what", "value"}),
        ("dense", "sdxl", {"side", "ms", "ratio", "error"}),
        ("sparse", "sdxl", SPARSE),
        ("loras", "sdxl", {"way", "ms"}),
        ("side_path", "sd15", {"sets", "one call", "refit", "turns", "side path"}),
        ("controls", "sdxl", {"ControlNets", "in turn"}),
        ("vae", "sd15", {"size", "precision", "side", "ms"}),
    ],
)
def test_a_step_writes_its_rows(
    tmp_path: Path, module: str, variant: str, columns: set[str]
) -> None:
    out = tmp_path / "out.json"
    step = import_module(f"bench.gpu.{module}")
    step.main(["--tiny", f"--variant={variant}", f"--out={out}"])
    found = json.loads(out.read_text())
    assert found["rows"]
    assert {"device", "torch"} <= found.keys()
    for row in found["rows"]:
        assert columns <= row.keys()
        if "error" in row:
            assert row["error"] < 1e-4
