"""What every step of the TensorRT check is told, and how it reports.

A step takes the engine and the compiler by name. In the tests ONNX Runtime and a fake compiler take
TensorRT's place, so that everything else runs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import cast

from bench.gpu.timing import Report
from tessera_build.compile import Compiler

DEMO = "demo"
COMPILER = "tessera_build.tensorrt:PolygraphyCompiler"


@dataclass
class Options:
    """The command line of a step.

    Attributes:
        report: of its results.
        bundle: `demo`, or the variant of a bundle with random weights.
        work: folder of all bundles.
        engine: the kind that is checked.
        compiler: MODULE:NAME of a `Compiler`.
        tiny: whether networks are small and few calls are made.
        failures: what went wrong so far.
    """

    report: Report
    bundle: str
    work: Path
    engine: str
    compiler: str
    tiny: bool
    failures: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        return self.work / self.bundle

    @property
    def precision(self) -> str:
        """That compiled engines are made for."""
        return "fp32" if self.tiny else "fp16"

    def new_compiler(self) -> Compiler:
        """The compiler that was named."""
        module, _, name = self.compiler.partition(":")
        return cast(Compiler, getattr(import_module(module), name)())

    def attempt(self, what: str, part: Callable[[], None]) -> None:
        """Run a part of a step; one that fails does not stop the next."""
        try:
            part()
        except Exception as error:
            said = " ".join(str(error).split()) or "no message"
            self.report.add(what=what, note=f"FAILED: {said[:200]}")
            self.failures.append(f"{what}: {type(error).__name__}: {said}")

    def status(self) -> int:
        """The exit status, after printing what went wrong."""
        print("\n".join(self.failures))
        return int(bool(self.failures))


def options(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line of a step; folder, engine and compiler may come from the environment,
    where the runner of all steps puts them.
    """
    given = os.environ.get
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", choices=(DEMO, "sd15", "sdxl"), default=DEMO)
    parser.add_argument("--work", type=Path, default=Path(given("VERIFY_WORK") or "out/verify"))
    parser.add_argument("--engine", default=given("VERIFY_ENGINE") or "tensorrt")
    parser.add_argument("--compiler", default=given("VERIFY_COMPILER") or COMPILER)
    parser.add_argument("--tiny", action="store_true")
    found = parser.parse_args(arguments)
    report = Report(found.out)
    return Options(report, found.bundle, found.work, found.engine, found.compiler, found.tiny)
