"""None to three ControlNets beside the encoder half on one GPU: one after the other, or each on a
stream of its own; their residuals added on the device, or by way of host memory as served.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from bench.gpu import networks
from bench.gpu.timing import Options, Place, medians, options, place
from tessera.denoise.unet import UNet

ROWS = 2
MOST = 3
Residuals = list[torch.Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    """A row for each number of ControlNets: milliseconds of a tick's networks."""
    chosen, where = options(arguments), place()
    sides = Sides(chosen, where)
    for count in range(2 if chosen.tiny else MOST + 1):
        row: dict[str, Any] = {"ControlNets": count}
        if count == 0:
            row |= medians({"in turn": sides.plain}, chosen.effort(9, 4.0))
        else:
            row |= medians(sides.calls(count), chosen.effort(9, 6.0))
        chosen.report.add(**row)


class Added:
    """Adds residuals between the halves: a `tessera.denoise.unet.Join`.

    Args:
        answers: of the ControlNets, perhaps on their way.
    """

    def __init__(self, answers: Sequence[Callable[[], Residuals]]) -> None:
        self._answers = answers

    def add(self, encoded: dict[str, torch.Tensor], first: int = 0) -> None:
        """See `Join.add`."""
        names = [*(name for name in encoded if name.startswith("skip_")), "mid"]
        for answer in self._answers:
            for name, residual in zip(names, answer(), strict=True):
                own = encoded[name]
                own.add_(residual.to(own.device, own.dtype))

    def maps(self, shapes: Sequence[torch.Size], rows: int) -> list[torch.Tensor]:
        """See `Join.maps`; nobody asks here."""
        raise NotImplementedError


class Sides:
    """A UNet's halves and ControlNets, captured before threads use them."""

    def __init__(self, chosen: Options, where: Place) -> None:
        config = networks.configs(chosen.variant, tiny=chosen.tiny)["unet"]
        unet = networks.random_network("unet", config, where)
        side = networks.side_of(chosen.variant, tiny=chosen.tiny)
        self._inputs = networks.unet_inputs(unet, chosen.variant, rows=ROWS, side=side)
        hint = torch.randn(ROWS, config["block_out_channels"][0], side, side)
        self._control_inputs = networks.placed({**self._inputs, "hint": hint}, where)
        engines = (
            networks.engine(half, unet, chosen.variant, where)
            for half in ("unet_encoder", "unet_decoder")
        )
        self._unet = UNet(*engines, max_rows=ROWS)
        own, part = networks.control_config(config), "controlnet_random"
        self._controls = [
            networks.engine(part, networks.random_network(part, own, where), chosen.variant, where)
            for _ in range(1 if chosen.tiny else MOST)
        ]
        self._threads = ThreadPoolExecutor(MOST)
        self._streams = [torch.cuda.Stream() for _ in self._controls] if where.on_gpu else []
        with torch.inference_mode():
            for number in [n for n in range(len(self._controls)) for _ in range(3)]:
                self._residuals(number)

    def plain(self, join: Any = None) -> torch.Tensor:
        """A call of the UNet, as served."""
        inputs = dict(self._inputs)
        return self._unet.predict(inputs.pop("sample"), inputs.pop("timestep"), inputs, join)

    def calls(self, count: int) -> dict[str, Callable[[], torch.Tensor]]:
        """With the first `count` ControlNets."""
        numbers = range(count)

        def in_turn() -> torch.Tensor:
            found = [self._residuals(number) for number in numbers]
            return self.plain(Added([partial(list, own) for own in found]))

        def beside(through_host: bool) -> torch.Tensor:
            asked: list[Future[Residuals]] = [
                self._threads.submit(self._on_stream, number, through_host) for number in numbers
            ]
            return self.plain(Added([future.result for future in asked]))

        return {
            "in turn": in_turn,
            "beside": lambda: beside(False),
            "beside, by the host": lambda: beside(True),
        }

    def _residuals(self, number: int) -> Residuals:
        return list(self._controls[number].run(self._control_inputs).values())

    @torch.inference_mode()
    def _on_stream(self, number: int, through_host: bool) -> Residuals:
        if not self._streams:
            return self._residuals(number)
        with torch.cuda.stream(self._streams[number]):
            found = self._residuals(number)
            if through_host:
                found = [residual.float().cpu() for residual in found]
            self._streams[number].synchronize()
        return found


if __name__ == "__main__":
    main()
