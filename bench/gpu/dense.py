"""One dense UNet step of a guided request (two rows): diffusers' UNet and Tessera's halves on the
same GPU and the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from bench.gpu import networks
from bench.gpu.timing import Options, Place, medians, options, place
from tessera.denoise.unet import UNet
from tessera.engines.canary import difference
from tessera.types import Tensors

ROWS = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """A row for each side: milliseconds, in units of diffusers', and the error of half
    precision.
    """
    chosen, where = options(arguments), place()
    config = networks.configs(chosen.variant, tiny=chosen.tiny)["unet"]
    side = networks.side_of(chosen.variant, tiny=chosen.tiny)
    plain = networks.random_network("unet", config, where)
    inputs = networks.unet_inputs(plain, chosen.variant, rows=ROWS, side=side)
    reference = exact(config, inputs, where)
    fast = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    compare(chosen, Sides(plain, fast, chosen.variant, inputs, where), reference)


class Sides:
    """What takes turns.

    Args:
        plain: diffusers' UNet.
        fast: the same, channels last; the halves share its weights.
        variant: of both.
        inputs: float32 on the CPU.
        where: both run.
    """

    def __init__(self, plain: Any, fast: Any, variant: str, inputs: Tensors, where: Place) -> None:
        self._plain, self._fast, self._inputs = plain, fast, inputs
        self._there = networks.placed(inputs, where)
        halves = ("unet_encoder", "unet_decoder")
        self._eager, self._captured = (
            [networks.engine(half, fast, variant, where, graphs=graphs) for half in halves]
            for graphs in (0, networks.GRAPHS)
        )
        self._unet = UNet(*self._captured, max_rows=ROWS)

    @property
    def calls(self) -> dict[str, Any]:
        """By name; the inputs of all but the last lie on the device."""
        return {
            "diffusers eager": lambda: networks.diffusers_call(self._plain, self._there),
            "diffusers channels-last": lambda: networks.diffusers_call(self._fast, self._there),
            "halves channels-last": lambda: halves(self._eager, self._there),
            "halves CUDA graph": lambda: halves(self._captured, self._there),
            "as served": self._served,
        }

    def _served(self) -> torch.Tensor:
        inputs = dict(self._inputs)
        return self._unet.predict(inputs.pop("sample"), inputs.pop("timestep"), inputs)


def halves(engines: list[Any], inputs: Tensors) -> torch.Tensor:
    """A call of encoder and decoder half."""
    encoded = engines[0].run(inputs)
    text = {"encoder_hidden_states": inputs["encoder_hidden_states"]}
    return engines[1].run(encoded | text)["prediction"]


def exact(config: dict[str, Any], inputs: Tensors, where: Place) -> torch.Tensor:
    """What diffusers computes in float32 with these weights."""
    network = networks.random_network("unet", config, where, dtype=where.dtype).float()
    there = {name: tensor.to(where.device) for name, tensor in inputs.items()}
    with torch.inference_mode():
        return networks.diffusers_call(network, there).cpu()


def compare(chosen: Options, sides: Any, reference: torch.Tensor) -> None:
    """Measure and report calls, the first of which is the unit."""
    with torch.inference_mode():
        errors = {
            name: difference({"prediction": reference}, {"prediction": call()})
            for name, call in sides.calls.items()
        }
    found = medians(sides.calls, chosen.effort())
    unit = next(iter(found.values()))
    for name, took in found.items():
        chosen.report.add(side=name, ms=took, ratio=took / unit, error=errors[name])


if __name__ == "__main__":
    main()
