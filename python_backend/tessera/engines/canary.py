"""Checks an engine before its first refit.

Refits can fail silently: a runtime may ignore new weights or compute wrong results with them. When
a compiled engine is built, torch's outputs are stored, with the weights unchanged and with one
weight doubled. Before an engine's first refit, the machine that serves compares the engine with
both. An engine that fails is disabled.

Knows engines and tensors, nothing of TensorRT.
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
    """Reference outputs of torch in float32.

    Attributes:
        weight: name of the weight that is doubled.
        value: the weight, in its shape in the checkpoint.
        inputs: inputs of the graph, by name.
        built: outputs with unchanged weights.
        doubled: outputs with the weight doubled.
        tolerance: largest accepted difference, in units of each output's largest value.
    """

    weight: str
    value: torch.Tensor
    inputs: Mapping[str, torch.Tensor]
    built: Mapping[str, torch.Tensor]
    doubled: Mapping[str, torch.Tensor]
    tolerance: float

    def write(self, path: Path) -> None:
        """Write the canary to a safetensors file."""
        groups = {"inputs": self.inputs, "built": self.built, "doubled": self.doubled}
        tensors = {
            f"{g}/{n}": t.contiguous()
            for g, of_group in groups.items()
            for n, t in of_group.items()
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
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            value = tensors.pop("value")
            groups: dict[str, dict[str, torch.Tensor]] = {"inputs": {}, "built": {}, "doubled": {}}
            for path_in_file, tensor in tensors.items():
                group, _, name = path_in_file.partition("/")
                groups[group][name] = tensor
            return cls(metadata["weight"], value, **groups, tolerance=float(metadata["tolerance"]))
        except Exception as error:  # safetensors, missing keys, broken numbers
            raise BundleError(f"{path} is damaged ({error}); compile the bundle again") from None


def difference(expected: Mapping[str, torch.Tensor], output: Mapping[str, torch.Tensor]) -> float:
    """Largest difference of the outputs from the expected ones, in units of each expected output's
    largest value. NaN if any difference is NaN.
    """
    differences = [
        float((output[n].float().cpu() - v).abs().max() / v.abs().max().clamp(min=1e-6))
        for n, v in expected.items()
    ]
    return max(differences, key=lambda d: (d != d, d))


def refit_difference(engine: Engine, canary: Canary) -> tuple[float, float]:
    """Differences of an engine from torch, with the canary's weight doubled and then restored."""
    engine.refit({canary.weight: 2 * canary.value})
    doubled = difference(canary.doubled, engine.run(canary.inputs))
    engine.refit({canary.weight: canary.value})
    return doubled, difference(canary.built, engine.run(canary.inputs))


class WatchedEngine:
    """Wraps an engine and checks the canary before the first refit.

    Args:
        engine: the engine, with the weights it was built with.
        canary: the engine's reference outputs.
        name: name of the engine, for the error.
    """

    def __init__(self, engine: Engine, canary: Canary, *, name: str) -> None:
        self._engine = engine
        self._canary = canary
        self._name = name
        self._checked = False
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
        if not self._checked:
            self._checked = True
            both = refit_difference(self._engine, self._canary)
            for when, error in zip(("after a refit", "after it was undone"), both, strict=True):
                if not error <= self._canary.tolerance:
                    self._fault = (
                        f"the engine {self._name} is disabled: it differs from torch by "
                        f"{error:.1e} {when}; accepted: at most {self._canary.tolerance:.0e}. "
                        "Compile the bundle again or serve with --engine torch"
                    )
            self._refuse_if_faulty()
        self._engine.refit(weights)

    def describe(self) -> EngineInfo:
        """See `Engine.describe`."""
        return self._engine.describe()

    def _refuse_if_faulty(self) -> None:
        if self._fault:
            raise BundleError(self._fault)
