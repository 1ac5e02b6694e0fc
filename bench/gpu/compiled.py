"""One dense UNet step with torch.compile, diffusers' and Tessera's; and what compiling takes."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch

from bench.gpu import networks
from bench.gpu.dense import ROWS, halves
from bench.gpu.timing import medians, milliseconds, options, place


def main(arguments: Sequence[str] | None = None) -> None:
    """A row for each side, written as soon as it is compiled; captured halves are the unit."""
    chosen, where = options(arguments), place()
    config = networks.configs(chosen.variant, tiny=chosen.tiny)["unet"]
    side = networks.side_of(chosen.variant, tiny=chosen.tiny)
    unet = networks.random_network("unet", config, where).to(memory_format=torch.channels_last)
    inputs = networks.unet_inputs(unet, chosen.variant, rows=ROWS, side=side)
    there = networks.placed(inputs, where)
    captured, compiled = (
        [networks.engine(h, unet, chosen.variant, where, compiled=c) for h in _HALVES]
        for c in (False, not chosen.tiny)  # its backend cannot be chosen, and one takes minutes
    )
    backend = "eager" if chosen.tiny else "inductor"
    theirs = torch.compile(copy.deepcopy(unet), fullgraph=True, dynamic=False, backend=backend)
    sides: dict[str, Any] = {
        "halves CUDA graph": lambda: halves(captured, there),
        "diffusers compiled": lambda: networks.diffusers_call(theirs, there),
        "halves compiled": lambda: halves(compiled, there),
    }
    unit = sides["halves CUDA graph"]
    for name, call in sides.items():
        began = time.monotonic()
        with torch.inference_mode():
            milliseconds(call)
        compiling = time.monotonic() - began
        both = medians({"unit": unit, name: call}, chosen.effort(seconds=5.0))
        took = both[name]
        row = {"ms": took, "ratio": took / both["unit"], "first call s": compiling}
        chosen.report.add(side=name, **row)


_HALVES = ("unet_encoder", "unet_decoder")

if __name__ == "__main__":
    main()
