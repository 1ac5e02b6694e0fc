"""Compiles every graph of a bundle, with its canary: differences from torch in float32, as built
and after a refit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial

from bench.tensorrt.options import Options, options
from tessera_build.compile import TOLERANCE, Compiler, Job, compile_job, plan_jobs


def main(arguments: Sequence[str] | None = None) -> int:
    """A row for each graph; one that fails does not stop the next."""
    chosen = options(arguments)
    compiler = chosen.new_compiler()
    for job in jobs_of(chosen, compiler):
        chosen.attempt(job.key.graph, partial(_compile, chosen, compiler, job))
    return chosen.status()


def jobs_of(chosen: Options, compiler: Compiler) -> list[Job]:
    """The compiled engines of the bundle."""
    return plan_jobs(
        chosen.folder,
        precision=chosen.precision,
        architecture=compiler.architecture,
        tensorrt=compiler.version,
    )


def _compile(chosen: Options, compiler: Compiler, job: Job) -> None:
    began = time.monotonic()
    record = compile_job(job, compiler, chosen.folder)
    chosen.report.add(
        what=job.key.graph,
        precision=job.key.precision,
        s=time.monotonic() - began,
        MB=job.path.stat().st_size / 1e6,
        built=record.canary_built,
        refitted=record.canary_refitted,
        accepted=TOLERANCE[job.key.precision],
    )


if __name__ == "__main__":
    sys.exit(main())
