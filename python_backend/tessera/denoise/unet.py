"""The dense UNet: its encoder half and decoder half as one batched call, on one device or several.

Knows engines and tensors, nothing of requests.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Protocol

import torch

from tessera import trace
from tessera.engines.base import Engine, OutOfMemory
from tessera.engines.devices import Devices
from tessera.types import Conditions
from tessera.variants import Variant

_log = logging.getLogger(__name__)


class Join(Protocol):
    """Adds residuals to the encoder half's outputs before the decoder half runs."""

    def add(self, encoded: dict[str, torch.Tensor], first: int = 0) -> None:
        """Add residuals to the encoder half's outputs in place.

        Args:
            encoded: the outputs, for rows of the batch from `first` on.
            first: index of the first row.
        """
        ...

    def maps(self, shapes: Sequence[torch.Size], rows: int) -> list[torch.Tensor]:
        """The residuals themselves, for a UNet that is not cut into halves.

        Returns:
            (rows, c, h, w) for each of the `shapes` (c, h, w).
        """
        ...


class UNet:
    """Two engines that share a batch. Where memory is too small for the rows of a call, later calls
    of that size have half as many.

    Args:
        encoder: `sample` (n, c, h, w), `timestep` (n,) and the conditions -> `mid`, `emb`, `skip_0`
            ... `skip_k`.
        decoder: those and `encoder_hidden_states` -> `prediction` (n, c, h, w).
        max_rows: largest batch of one engine call.
    """

    def __init__(self, encoder: Engine, decoder: Engine, *, max_rows: int) -> None:
        self._encoder = encoder
        self._decoder = decoder
        self._max_rows = max_rows
        self._fitting: dict[tuple[int, int], int] = {}
        """Rows that fit, by size of the latents, where those are fewer."""

    def predict(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        conditions: Conditions,
        join: Join | None = None,
        *,
        first: int = 0,
    ) -> torch.Tensor:
        """The network's prediction (n, c, h, w).

        Args:
            sample: scaled latents (n, c, h, w), float32.
            timestep: (n,) float32.
            conditions: the result of `conditions_of`, n rows each.
            join: adds the residuals of ControlNets between the halves.
            first: index of the first row in the batch that `join` knows.

        Raises:
            OutOfMemory: memory is missing for one row alone.
        """
        inputs = {"sample": sample, "timestep": timestep, **conditions}
        size = (sample.shape[2], sample.shape[3])
        while True:
            rows = min(len(sample), self._fitting.get(size, self._max_rows))
            try:
                return self._in_parts(inputs, rows, join, first)
            except OutOfMemory:
                if rows == 1:
                    raise
                self._fitting[size] = rows // 2
                _log.warning(
                    "%d rows of latents %d x %d do not fit into memory: %d at a time from now on",
                    *(rows, size[1], size[0], rows // 2),
                )

    def _in_parts(
        self, inputs: Conditions, most: int, join: Join | None, first: int
    ) -> torch.Tensor:
        rows = len(inputs["sample"])
        if rows <= most:
            return self._call(inputs, join, first)
        starts = range(0, rows, most)
        chunks = [(i, {k: v[i : i + most] for k, v in inputs.items()}) for i in starts]
        return torch.cat([self._call(chunk, join, first + start) for start, chunk in chunks])

    def _call(self, inputs: Conditions, join: Join | None, first: int) -> torch.Tensor:
        with trace.span("encoder half", rows=inputs["sample"].shape[0]):
            encoded = self._encoder.run(inputs)
        if join:
            with trace.span("join"):
                join.add(encoded, first)
        text = inputs["encoder_hidden_states"]
        with trace.span("decoder half"):
            outputs = self._decoder.run({**encoded, "encoder_hidden_states": text})
            return outputs["prediction"].float().cpu()


class SpreadUNet:
    """The UNet on several devices, each with a share of the rows of every call. A share's
    activations stay on its device.

    Args:
        unets: one for each device.
        devices: the devices.
    """

    def __init__(self, unets: Sequence[UNet], devices: Devices) -> None:
        self._unets = tuple(unets)
        self._devices = devices

    def predict(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        conditions: Conditions,
        join: Join | None = None,
    ) -> torch.Tensor:
        """See `UNet.predict`.

        Raises:
            DeviceLost: a device failed. The requests whose rows it computed have to end.
        """
        cost = ("dense", sample.shape[2] * sample.shape[3])

        def part(device: int, rows: slice, _: int) -> torch.Tensor:
            given = {name: tensor[rows] for name, tensor in conditions.items()}
            return self._unets[device].predict(
                sample[rows], timestep[rows], given, join, first=rows.start
            )

        shares = self._devices.split(len(sample), cost)
        # Waiting for ControlNets takes every device the same time, whatever it costs itself.
        return torch.cat(self._devices.run(shares, part, cost, learn=join is None))


def unet_on(
    devices: Devices, encoders: Sequence[Engine], decoders: Sequence[Engine], *, max_rows: int
) -> UNet | SpreadUNet:
    """The UNet on some devices, from the engines of both halves on each of them."""
    pairs = zip(encoders, decoders, strict=True)
    unets = [UNet(encoder, decoder, max_rows=max_rows) for encoder, decoder in pairs]
    return unets[0] if len(devices) == 1 else SpreadUNet(unets, devices)


def conditions_of(
    text: torch.Tensor,
    pooled: torch.Tensor,
    *,
    width: int,
    height: int,
    variant: Variant,
    guidance: torch.Tensor | None = None,
) -> Conditions:
    """The inputs that are the same in all UNet calls of an image, by name of the input.

    Args:
        text: embeddings (branches, tokens, width).
        pooled: embeddings (branches, width).
        width: of the image, in pixels.
        height: of the image, in pixels. A variant that conditions on sizes gets this size as both
            the original and the target size, without a crop, as in diffusers' pipeline.
        variant: determines which inputs there are.
        guidance: what `embed_guidance` returns, for a UNet that takes it.
    """
    conditions = {"encoder_hidden_states": text}
    if guidance is not None:
        conditions["timestep_cond"] = guidance.repeat(text.shape[0], 1)
    if variant.pooled:
        sizes = torch.tensor([float(n) for n in (height, width, 0, 0, height, width)])
        conditions |= {"text_embeds": pooled, "time_ids": sizes.repeat(text.shape[0], 1)}
    return conditions


def embed_guidance(scale: float, width: int) -> torch.Tensor | None:
    """The embedding (1, width) of a guidance scale, as diffusers' `get_guidance_scale_embedding`
    (Meng et al. 2023); `None` for a width of 0, of UNets that take none.
    """
    if not width:
        return None
    half = width // 2
    frequencies = torch.exp(torch.arange(half) * -(math.log(10000.0) / (half - 1)))
    angles = 1000.0 * (torch.tensor(scale) - 1) * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()])
    return torch.nn.functional.pad(embedding, (0, width % 2))[None]
