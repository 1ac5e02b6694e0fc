"""The dense pass that fills a template's sites.

The UNet's halves run unchanged. Forward hooks copy the values of the sites. A batch may hold any
number of timesteps and branches, and every array gets one row for each. Residuals of ControlNets
are added between the halves. Knows torch modules, nothing of templates or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from tessera.networks.modules import UNetDecoder, UNetEncoder
from tessera.networks.program import Site

Recording = dict[str, torch.Tensor]
"""Arrays by site name. The first axis is the row, the others are `Site.shape`."""

Join = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
"""Returns `mid` and `skip_i` of the encoder half with residuals added. It leaves what it was given
as it is, since that has been recorded."""


@torch.no_grad()
def record(
    encoder: UNetEncoder,
    decoder: UNetDecoder,
    inputs: Mapping[str, torch.Tensor],
    *,
    sites: Iterable[Site],
    join: Join | None = None,
) -> tuple[Recording, torch.Tensor]:
    """Run both halves and record the sites.

    Args:
        encoder: the encoder half, with its weights.
        decoder: the decoder half of the same network.
        inputs: the encoder half's inputs, one row per timestep and branch.
        sites: the sites to record: `Program.sites` or some of them.
        join: adds residuals of ControlNets.

    Returns:
        The recording, and the network's prediction (rows, channels, height, width).
    """
    kept: Recording = {}
    with ExitStack() as stack:
        for half in (encoder, decoder):
            stack.enter_context(_hooked(half, sites, kept))
        mid, emb, *skips = encoder(*(inputs[name] for name in encoder.inputs))
        if join is not None:
            encoded = {"mid": mid, **{f"skip_{i}": skip for i, skip in enumerate(skips)}}
            mid, *skips = join(encoded).values()
        prediction = decoder(mid, emb, inputs["encoder_hidden_states"], *skips)
    return kept, prediction


@contextmanager
def _hooked(half: nn.Module, sites: Iterable[Site], kept: Recording) -> Iterator[None]:
    modules, handles = dict(half.named_modules()), []
    for site in sites:
        name = _observed(site)
        if name in modules:
            handles.append(modules[name].register_forward_hook(_recorder(site, kept)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _observed(site: Site) -> str:
    """Name of the module whose input or output has the site's values."""
    if site.kind in ("key", "value"):
        return f"{site.module}.to_{site.kind[0]}"
    if site.kind == "halo" and not site.table.startswith("same"):
        return site.module.rpartition(".")[0]  # the input before it is padded or upsampled
    return site.module


def _recorder(site: Site, kept: Recording) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        kept[site.name] = _VALUES[site.kind](site, inputs[0], output)

    return hook


def _rows(site: Site, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    return input.flatten(2).transpose(1, 2).contiguous()


def _heads(site: Site, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    return output.unflatten(2, (site.heads, -1)).transpose(1, 2).contiguous()


def _shares(site: Site, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Per token and group: mean and root mean square over the group's channels, float32."""
    groups = site.width // 2
    values = input.float().flatten(2).unflatten(1, (groups, -1))  # (n, groups, channels, tokens)
    means = values.mean(2), values.square().mean(2).sqrt()
    return torch.stack(means, 1).permute(0, 3, 1, 2).contiguous()


def _statistics(site: Site, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Per group: mean and mean square over its channels and all tokens, float32."""
    values = input.float().flatten(2).unflatten(1, (site.width // 2, -1)).flatten(2)
    return torch.stack([values.mean(2), values.square().mean(2)], 1)


_VALUES: dict[str, Callable[[Site, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "halo": _rows,
    "key": _heads,
    "value": _heads,
    "norm": _statistics,
    "norm_rows": _shares,
}
