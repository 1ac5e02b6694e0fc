"""How large recordings are, and what of them fits into the budgets."""

from __future__ import annotations

import math

import numpy as np

from tessera.manifest import Manifest
from tessera.networks.program import Program, Site
from tessera.shared.settings import TemplateSettings
from tessera.sparse.tables import level_sizes
from tessera.templates.storage import CHOICES, choose_storage

GB = 1e9


def recorded_sites(program: Program) -> tuple[Site, ...]:
    """The sites to record: all but the first convolution's, whose input is known."""
    return tuple(s for s in program.sites if s.name != "halo.conv_in")


def numbers_per_step(program: Program, sites: tuple[Site, ...], size: tuple[int, int]) -> int:
    """How many numbers one recorded step has.

    Args:
        program: the UNet's program.
        sites: the sites that are recorded.
        size: (height, width) of the latents.
    """
    tokens = [math.prod(level) for level in level_sizes(size, program.paddings)]
    return int(sum(np.prod(site.shape(tokens)) for site in sites))


def what_does_not_fit(program: Program, manifest: Manifest, settings: TemplateSettings) -> str:
    """What an operator should know of recordings of the bundle's default size and steps; empty if
    memory holds a whole one in the best form.
    """
    defaults, pixels = manifest.defaults, manifest.latents.pixels
    size = (defaults.height // pixels, defaults.width // pixels)
    numbers = numbers_per_step(program, recorded_sites(program), size)
    steps, best = defaults.steps, CHOICES[0]
    whole = best.bytes(numbers, steps)
    what = f"recordings of {steps} steps at {defaults.width} x {defaults.height} pixels"
    chosen = choose_storage(numbers, steps, settings.largest)
    if chosen is None:
        return f"{what} do not fit {settings.largest / GB:.3g} GB: edits are dense"
    each = chosen.bytes(numbers, steps)
    if chosen == best and each <= settings.memory:
        return ""
    return (
        f"{what} are kept as {chosen.name}, {each / GB:.3g} GB each ({best.name} takes "
        f"{whole / GB:.3g} GB): {settings.memory // each} of them fit into memory, "
        f"{settings.disk // each} on disk"
    )
