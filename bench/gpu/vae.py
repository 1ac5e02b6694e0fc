"""Decoding one picture: diffusers' VAE and Tessera's engine, in half precision and in float32
(which Stable Diffusion XL's VAE needs unless it has been mended).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bench.gpu import networks
from bench.gpu.timing import Place, medians, options, place
from tessera.engines.torch import TorchEngine


def main(arguments: Sequence[str] | None = None) -> None:
    """A row for each size and precision."""
    chosen, where = options(arguments), place()
    types = (torch.float16, torch.float32) if where.on_gpu else (torch.float32,)
    config = networks.configs("sd15", tiny=chosen.tiny)["vae"]
    for size in (networks.TINY_SIZE,) if chosen.tiny else (512, 1024):
        for dtype in types:
            found = medians(
                sides(config, size, Place(where.device, dtype)), chosen.effort(seconds=4.0)
            )
            precision = str(dtype).removeprefix("torch.")
            for name, took in found.items():
                chosen.report.add(size=size, precision=precision, side=name, ms=took)


def sides(config: dict[str, Any], size: int, where: Place) -> dict[str, Any]:
    """What takes turns."""
    vae = networks.random_network("vae", config, where)
    latents = where.put(torch.randn(1, LATENT_CHANNELS, size // 8, size // 8))
    own = networks.random_network("vae", config, where)
    decoder = TorchEngine(
        networks.module("vae_decoder", own, "sd15"), device=where.device, dtype=where.dtype
    )
    return {
        "diffusers": lambda: vae.decode(latents, return_dict=False)[0],
        "engine": lambda: decoder.run({"latents": latents})["image"],
    }


LATENT_CHANNELS = networks.LATENTS.channels

if __name__ == "__main__":
    main()
