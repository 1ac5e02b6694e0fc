"""A watch over an engine's first refit.

Refits go wrong in silence: a runtime may ignore the new weights, or compute something else with
them. When a plan was built, it was run with and without one weight doubled, and torch told what is
right both times. Before an engine's first refit the same is done again, on the machine that serves;
an engine that fails never answers again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tessera.engines.base import Engine, EngineInfo
from tessera.errors import BundleError


@dataclass(frozen=True)
class Canary:
    """What torch computes in float32.

    Attributes:
        weight: name of the weight that is doubled.
        value: the weight, in its shape in the checkpoint.
        inputs: of the network, by name.
        built: outputs with the weight as it is.
        doubled: outputs with twice the weight.
        tolerance: largest accepted difference, in units of each output's largest value.
    """

    weight: str
    value: torch.Tensor
    inputs: Mapping[str, torch.Tensor]
    built: Mapping[str, torch.Tensor]
    doubled: Mapping[str, torch.Tensor]
    tolerance: float

    def write(self, path: Path) -> None:
        """Write it into a safetensors file."""
        groups = {"inputs": self.inputs, "built": self.built, "doubled": self.doubled}
        tensors = {
            f"{g}/{n}": t.contiguous() for g, held in groups.items() for n, t in held.items()
        }
        metadata = {"weight": self.weight, "tolerance": repr(self.tolerance)}
        save_file({**tensors, "value": self.value.contiguous()}, path, metadata=metadata)

    @classmethod
    def read(cls, path: Path) -> Canary:
        """Inverse of `write`.

        Raises:
            BundleError: the file is missing or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            value = held.pop("value")
            groups: dict[str, dict[str, torch.Tensor]] = {"inputs": {}, "built": {}, "doubled": {}}
            for name, tensor in held.items():
                group, _, own = name.partition("/")
                groups[group][own] = tensor
            return cls(metadata["weight"], value, **groups, tolerance=float(metadata["tolerance"]))
        except Exception as error:  # safetensors, missing keys, broken numbers
            raise BundleError(f"{path} is damaged ({error}); compile the bundle again") from None


def difference(expected: Mapping[str, torch.Tensor], output: Mapping[str, torch.Tensor]) -> float:
    """Largest difference of outputs from what is expected, in units of each one's largest value;
    NaN if there is one.
    """
    found = [
        float((output[n].float().cpu() - v).abs().max() / v.abs().max().clamp(min=1e-6))
        for n, v in expected.items()
    ]
    return max(found, key=lambda d: (d != d, d))


def refit_difference(engine: Engine, canary: Canary) -> tuple[float, float]:
    """Differences of an engine from torch with the canary's weight doubled and with it restored."""
    engine.refit({canary.weight: 2 * canary.value})
    doubled = difference(canary.doubled, engine.run(canary.inputs))
    engine.refit({canary.weight: canary.value})
    return doubled, difference(canary.built, engine.run(canary.inputs))


class WatchedEngine:
    """Passes everything on to an engine, but asks the canary before the first refit.

    Args:
        engine: with the weights it was built with.
        canary: see the module.
        name: of the engine, for the error.
    """

    def __init__(self, engine: Engine, canary: Canary, *, name: str) -> None:
        self._engine = engine
        self._canary = canary
        self._name = name
        self._tried = False
        self._fault = ""

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Engine.run`.

        Raises:
            BundleError: the engine failed the canary.
        """
        self._refuse_if_faulty()
        return self._engine.run(inputs)

    def refit(self, weights: Mapping[str, torch.Tensor]) -> None:
        """See `Engine.refit`.

        Raises:
            BundleError: the engine failed the canary, now or before.
        """
        self._refuse_if_faulty()
        if not self._tried:
            self._tried = True
            found = refit_difference(self._engine, self._canary)
            for when, error in zip(("after a refit", "after it was undone"), found, strict=True):
                if not error <= self._canary.tolerance:
                    self._fault = (
                        f"the engine {self._name} is disabled: it is {error:.1e} away from torch "
                        f"{when}, more than {self._canary.tolerance:.0e}; compile the bundle again "
                        "or serve with --engine torch"
                    )
            self._refuse_if_faulty()
        self._engine.refit(weights)

    def describe(self) -> EngineInfo:
        """See `Engine.describe`."""
        return self._engine.describe()

    def _refuse_if_faulty(self) -> None:
        if self._fault:
            raise BundleError(self._fault)
