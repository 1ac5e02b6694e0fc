"""Refits compiled engines as a change of LoRA does: base, A, B, A, base. The second A has to equal
the first one bit for bit, and so has the base.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from bench.gpu.timing import milliseconds
from bench.tensorrt.compiled import jobs_of
from bench.tensorrt.options import Options, options
from tessera.engines.base import Engine
from tessera.engines.canary import Canary
from tessera.engines.compiled import canary_path
from tessera.engines.registry import open_module
from tessera.types import Tensors
from tessera_build.compile import Compiler, Job

GRAPHS = ("text_encoder", "unet_encoder", "unet_decoder")
"""Those that LoRAs change."""
TARGETS = ("to_q.weight", "to_v.weight", "q_proj.weight", "v_proj.weight")
STRENGTH = 0.2
"""Of a change, in units of the weight's standard deviation."""


def main(arguments: Sequence[str] | None = None) -> int:
    """A row for each graph that LoRAs change."""
    chosen = options(arguments)
    compiler = chosen.new_compiler()
    for job in jobs_of(chosen, compiler):
        if job.key.graph in GRAPHS:
            chosen.attempt(job.key.graph, partial(_check, chosen, compiler, job))
    return chosen.status()


def _check(chosen: Options, compiler: Compiler, job: Job) -> None:
    engine = compiler.open(job.path, job.key, job.source)
    inputs = Canary.read(canary_path(job.path)).inputs
    base = {n: p.detach() for n, p in open_module(job.source).named_parameters()}
    targets = {n: w for n, w in base.items() if n.endswith(TARGETS)}
    first, second = (_changed(targets, seed) for seed in (1, 2))
    half = {n: w for number, (n, w) in enumerate(second.items()) if number % 2}
    before, times = _outputs(engine, inputs), []
    pictures = {}
    # B touches every other weight of A: going there, the rest has to return to the base.
    for name, weights in (("A", first), ("B", {**targets, **half}), ("A again", first)):
        times.append(milliseconds(partial(engine.refit, weights)))
        pictures[name] = _outputs(engine, inputs)
    engine.refit(targets)
    chosen.report.add(
        what=job.key.graph,
        weights=len(targets),
        refit_ms=statistics.median(times),
        effect=_apart(before, pictures["A"]),
        A_again=_apart(pictures["A"], pictures["A again"]),
        base_again=_apart(before, _outputs(engine, inputs)),
    )
    if _same(before, pictures["A"]) or _same(pictures["A"], pictures["B"]):
        raise RuntimeError("a refit changes nothing")
    if not _same(pictures["A"], pictures["A again"]):
        raise RuntimeError("A after B differs from A before it")
    if not _same(before, _outputs(engine, inputs)):
        raise RuntimeError("the base after all refits differs from the base before them")


def _changed(weights: Tensors, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: weight + STRENGTH * weight.std() * torch.randn(weight.shape, generator=generator)
        for name, weight in weights.items()
    }


def _outputs(engine: Engine, inputs: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: value.detach().float().cpu() for name, value in engine.run(inputs).items()}


def _apart(one: Tensors, other: Tensors) -> float:
    return max(float((one[n] - other[n]).abs().max()) for n in one)


def _same(one: Tensors, other: Tensors) -> bool:
    return all(torch.equal(one[n], other[n]) for n in one)


if __name__ == "__main__":
    sys.exit(main())
