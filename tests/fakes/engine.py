"""Stands in for an engine: runs a function of the named tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from tessera.engines.base import EngineInfo

Run = Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]


class FakeEngine:
    """An `Engine` around a function; remembers the batch sizes and refits it was called with."""

    def __init__(self, run: Run, device: str = "cpu") -> None:
        self._run = run
        self._device = device
        self.batches: list[int] = []
        self.refits: list[dict[str, torch.Tensor]] = []

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.batches.append(next(iter(inputs.values())).shape[0])
        return self._run(inputs)

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.refits.append(dict(weights))

    def describe(self) -> EngineInfo:
        return EngineInfo(kind="fake", device=self._device, inputs={}, outputs={})


def text_engine(width: int = 8) -> FakeEngine:
    """Embeds token ids: (n, tokens) -> (n, tokens, width)."""
    return FakeEngine(
        lambda i: {
            "last_hidden_state": i["input_ids"].float()[..., None].expand(-1, -1, width) / 1000
        }
    )


def unet_engines() -> tuple[FakeEngine, FakeEngine]:
    """An encoder and decoder half whose prediction depends on every input of its own row only."""
    encoder = FakeEngine(
        lambda i: {
            "mid": i["sample"] * 0.5,
            "emb": i["timestep"][:, None] / 1000,
            "skip_0": i["sample"] * 0.3,
        }
    )
    decoder = FakeEngine(lambda i: {"prediction": _predict(i)})
    return encoder, decoder


def vae_engine(pixels: int = 4) -> FakeEngine:
    """Latents (n, c, h, w) -> image (n, 3, pixels * h, pixels * w)."""

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        image = inputs["latents"][:, :3].repeat_interleave(pixels, 2).repeat_interleave(pixels, 3)
        return {"image": image.tanh()}

    return FakeEngine(run)


def vae_encoder_engine(pixels: int = 4) -> FakeEngine:
    """Image (n, 3, pixels * h, pixels * w) -> mean (n, 4, h, w) of the latents."""

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        small = torch.nn.functional.avg_pool2d(inputs["image"], pixels).clamp(-0.99, 0.99).atanh()
        return {"mean": torch.cat([small, small[:, :1]], 1)}

    return FakeEngine(run)


def _predict(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    text = inputs["encoder_hidden_states"].mean((1, 2))[:, None, None, None]
    emb = inputs["emb"][:, :, None, None]
    return (inputs["mid"] + inputs["skip_0"]).sin() + text * emb
