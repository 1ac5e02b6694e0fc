"""Opens a bundle's engines for token-sparse denoising and measures step costs on this machine.

Knows bundles and engines, nothing of requests or Triton.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera.denoise.tick import Controls
from tessera.denoise.unet import UNet
from tessera.edits.chooser import Size, StepChooser, measure
from tessera.edits.steps import SparseSteps
from tessera.engines.bundle import Bundle
from tessera.manifest import Manifest
from tessera.networks.program import Program
from tessera.shared.settings import ServerSettings, TemplateSettings
from tessera.sparse.batch import ArrayCache, Batch, Part
from tessera.sparse.engines import SparseUNetEngines
from tessera.sparse.tables import level_sizes, make_tables
from tessera.templates.memory import DeviceMemory, StepMemory
from tessera.templates.store import TemplateStore
from tessera.types import Conditions

TOKENS = 77
"""Tokens of a CLIP prompt."""

QUICK_MS = 100.0
"""If one branch of a dense step takes less, the default size is measured too when the server
starts."""

SHARES = (0.05, 0.125, 0.25, 0.5, 1.0)
"""Shares of active latents that are measured at the default size."""


def open_sparse(
    bundle: Bundle, unet: UNet, controls: Controls, settings: ServerSettings
) -> tuple[SparseSteps | None, StepChooser | None]:
    """The sparse steps of a bundle and their step chooser; (`None`, `None`) if the bundle lacks the
    graphs.
    """
    manifest = bundle.manifest
    if not manifest.can_be_sparse:
        return None, None
    config = json.loads(bundle.file(manifest.graphs["unet_sparse"].config).read_text())
    engines = SparseUNetEngines(bundle.engine("unet_sparse"), bundle.engine("unet_text"))
    program = bundle.outline("unet").program
    assert program is not None, "it is a UNet's"
    steps = SparseSteps(
        engines,
        program,
        TemplateStore(settings.templates.folder, budget=settings.templates.disk),
        _memory(settings.templates, engines.device),
        bundle=manifest.digest,
        max_rows=manifest.limits.max_rows,
        controls=controls,
    )
    bench = partial(_Bench, unet, engines, program, config, manifest.latents.channels)
    return steps, _remembered(settings.costs, lambda: _chooser(bench, manifest))


def _memory(settings: TemplateSettings, device: str) -> StepMemory:
    """Memory for recorded steps: on the host, and on the engine's GPU if it has one."""
    if not device.startswith("cuda"):
        return StepMemory(budget=settings.memory)
    host = StepMemory(budget=settings.memory, pinned=True)
    return DeviceMemory(host, device=device, budget=settings.device)


def _remembered(costs: Path, measure_costs: Callable[[], StepChooser]) -> StepChooser:
    """Load the costs that this server has already measured, or measure them.

    A process that replaces a killed one has no time to measure.
    """
    if costs.exists():
        return StepChooser.from_json(costs.read_text())
    chooser = measure_costs()
    partial_file = costs.with_suffix(".partial")
    partial_file.write_text(chooser.to_json())
    partial_file.replace(costs)
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
        unet: UNet,
        engines: SparseUNetEngines,
        program: Program,
        config: dict[str, Any],
        channels: int,
        size: Size,
    ) -> None:
        self._unet = unet
        self._engines = engines
        self._program = program
        self._sample = torch.randn(2, channels, *size)
        self._timestep = torch.full((2,), 500.0)
        self._conditions = _random_conditions(config)

    def dense(self) -> float:
        """Milliseconds of one branch of a dense step."""
        began = time.perf_counter()
        self._unet.predict(self._sample, self._timestep, self._conditions)
        return 1e3 * (time.perf_counter() - began) / 2

    def sparse(self, share: float) -> float:
        """Milliseconds of one branch of a sparse step, with assembling its cached inputs."""
        height, width = self._sample.shape[2:]
        mask = np.zeros((height, width), bool)
        mask[: max(1, round(share * height))] = True
        batch = Batch(self._program, [Part(make_tables(mask, self._program.paddings), 2)])
        batch.fixed  # noqa: B018 - computed once per request, so it is not timed
        conditions = self._engines.project_text(self._conditions)
        tokens = [h * w for h, w in level_sizes((height, width), self._program.paddings)]
        arrays = {s.name: torch.rand(1, *s.shape(tokens)) for s in self._program.sites}
        began = time.perf_counter()
        cached = batch.cached([ArrayCache(arrays)])
        self._engines.predict(batch, self._sample, self._timestep, conditions, cached)
        return 1e3 * (time.perf_counter() - began) / 2


def _random_conditions(config: dict[str, Any]) -> Conditions:
    conditions = {"encoder_hidden_states": torch.randn(2, TOKENS, config["cross_attention_dim"])}
    if config.get("addition_embed_type"):
        pooled = config["projection_class_embeddings_input_dim"]
        pooled -= 6 * config["addition_time_embed_dim"]
        conditions |= {"text_embeds": torch.randn(2, pooled), "time_ids": torch.ones(2, 6)}
    return conditions
