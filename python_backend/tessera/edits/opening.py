"""Opens a bundle's engines for token-sparse denoising and measures step costs on this machine.

Knows bundles and engines, nothing of requests or Triton.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera.contract import SPARSE_GRAPHS
from tessera.denoise.opening import OpenUNet, example_inputs, unet_config
from tessera.denoise.tick import Controls, Predict
from tessera.edits.chooser import Size, StepChooser, measure
from tessera.edits.measured import policies_of
from tessera.edits.quality import BUILT_IN, Policies
from tessera.edits.steps import SparseSteps
from tessera.engines.bundle import Bundle
from tessera.engines.replicas import refitted_together
from tessera.manifest import Manifest
from tessera.shared.machine import SHARE
from tessera.shared.own_files import read_own, write_own
from tessera.shared.settings import ServerSettings, TemplateSettings
from tessera.sparse.batch import ArrayCache, Part
from tessera.sparse.engines import SparseUNetEngines, SparseUNets
from tessera.sparse.tables import level_sizes, make_tables
from tessera.templates.fitting import what_does_not_fit
from tessera.templates.memory import DeviceMemory, StepMemory
from tessera.templates.store import TemplateStore

QUICK_MS = 100.0
"""If one branch of a dense step takes less, the default size is measured too when the server
starts."""

SHARES = (0.05, 0.125, 0.25, 0.5, 1.0)
"""Shares of active latents that are measured at the default size."""


def open_sparse(
    bundle: Bundle,
    dense: OpenUNet,
    controls: Controls,
    settings: ServerSettings,
    *,
    log: Callable[[str], None],
) -> tuple[SparseSteps | None, StepChooser | None]:
    """The sparse steps of a bundle and their step chooser; (`None`, `None`) if the bundle lacks the
    graphs. `log` is called with what an operator should know.
    """
    manifest = bundle.manifest
    if not manifest.can_be_sparse:
        return None, None
    unets = _open_unets(bundle, dense)
    if advice := what_does_not_fit(unets.program, manifest, settings.templates):
        log(f"{advice}; see --template-memory and --template-size")
    policies, news = policies_of(bundle.folder, manifest.digest)
    if news:
        log(news)
    steps = _steps(bundle, unets, settings.templates, controls, policies)
    bench = partial(_Bench, dense.unet.predict, unets, unet_config(bundle))
    return steps, _remembered(settings.costs, lambda: _chooser(bench, manifest))


def open_steps(bundle: Bundle, dense: OpenUNet, settings: TemplateSettings) -> SparseSteps:
    """The sparse steps of a bundle that has the graphs, without ControlNets and step chooser."""
    return _steps(bundle, _open_unets(bundle, dense), settings, None, BUILT_IN)


def _steps(
    bundle: Bundle,
    unets: SparseUNets,
    settings: TemplateSettings,
    controls: Controls | None,
    policies: Policies,
) -> SparseSteps:
    return SparseSteps(
        unets,
        TemplateStore(settings.folder, budget=settings.disk),
        _memories(settings, unets.devices),
        bundle=bundle.manifest.digest,
        max_rows=bundle.manifest.limits.max_rows,
        controls=controls,
        policies=policies,
    )


def _open_unets(bundle: Bundle, dense: OpenUNet) -> SparseUNets:
    devices = dense.devices
    opened = {graph: bundle.engines(graph, devices) for graph in SPARSE_GRAPHS}
    engines = [SparseUNetEngines(*pair) for pair in zip(*opened.values(), strict=True)]
    graphs = {graph: refitted_together(each, devices) for graph, each in opened.items()}
    program = bundle.outline("unet").program
    assert program is not None, "it is a UNet's"
    return SparseUNets(engines, devices, program, graphs)


def _memories(settings: TemplateSettings, devices: Sequence[str]) -> list[StepMemory]:
    """Memory for recorded steps, one for each device: on the host, and on a GPU above that."""
    on_gpu = any(device.startswith("cuda") for device in devices)
    host = StepMemory(budget=settings.memory, pinned=on_gpu)
    return [
        DeviceMemory(host, device=device, budget=_device_budget(settings, device))
        if device.startswith("cuda")
        else host
        for device in devices
    ]


def _device_budget(settings: TemplateSettings, device: str) -> int:
    if settings.device is not None:
        return settings.device
    return int(torch.cuda.get_device_properties(device).total_memory) // SHARE


def _remembered(costs: Path, measure_costs: Callable[[], StepChooser]) -> StepChooser:
    """Load the costs that this server has already measured, or measure them.

    A process that replaces a killed one has no time to measure.
    """
    with contextlib.suppress(FileNotFoundError):
        return StepChooser.from_json(read_own(costs).decode())
    chooser = measure_costs()
    write_own(costs, chooser.to_json().encode())
    return chooser


def _chooser(bench: Callable[[Size], _Bench], manifest: Manifest) -> StepChooser:
    """Measure at the smallest size and, if that is quick, at the default size too."""
    pixels, defaults = manifest.latents.pixels, manifest.defaults
    side = manifest.limits.min_size // pixels
    small = bench((side, side))
    chooser = measure(small.dense, small.sparse, tokens=side * side)
    if chooser.cost("dense", (side, side), side * side) < QUICK_MS:
        size = (defaults.height // pixels, defaults.width // pixels)
        tokens, large = size[0] * size[1], bench(size)
        chooser.observe("dense", size, tokens, min(large.dense() for _ in range(3)))
        for share in SHARES:
            cost = min(large.sparse(share) for _ in range(3))
            chooser.observe("sparse", size, share * tokens, cost)
    return chooser


class _Bench:
    """Times steps on random inputs, for one guided request (two branches)."""

    def __init__(
        self,
        predict: Predict,
        unets: SparseUNets,
        config: dict[str, Any],
        size: Size,
    ) -> None:
        self._predict = predict
        self._unets = unets
        self._inputs = example_inputs(config, size, rows=2)

    def dense(self) -> float:
        """Milliseconds of one branch of a dense step."""
        began = time.perf_counter()
        self._predict(*self._inputs, None)
        return 1e3 * (time.perf_counter() - began) / 2

    def sparse(self, share: float) -> float:
        """Milliseconds of one branch of a sparse step, with assembling its cached inputs."""
        sample, timestep, conditions = self._inputs
        program, (height, width) = self._unets.program, sample.shape[2:]
        mask = np.zeros((height, width), bool)
        mask[: max(1, round(share * height))] = True
        shares = self._unets.shares([Part(make_tables(mask, program.paddings), 2)])
        projected = self._unets.project_text(conditions)
        placed = [self._unets.place(each, projected) for each in shares]
        for each in shares:
            each.batch.fixed  # noqa: B018 - computed once per request, so it is not timed
        tokens = [h * w for h, w in level_sizes((height, width), program.paddings)]
        cache = ArrayCache({s.name: torch.rand(1, *s.shape(tokens)) for s in program.sites})
        began = time.perf_counter()
        cached = [each.batch.cached([cache]) for each in shares]
        self._unets.predict(shares, sample, timestep, placed, cached)
        return 1e3 * (time.perf_counter() - began) / 2
