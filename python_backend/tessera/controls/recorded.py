"""ControlNets in recordings: their models are asked, as in steps of requests.

A registration has the control images. Each recording of it tells them to the ControlNets with its
own prompt. Knows tensors, nothing of Triton: calls are made by a callable.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tessera.controls.fanout import FORGOTTEN, Ask, unpack
from tessera.controls.network import CONDITIONS
from tessera.errors import TesseraError
from tessera.sparse.record import Join
from tessera.templates.keys import RecordedControl
from tessera.types import Array, Conditions, Tensors

_KEYS = 2**62


class RecordedControls:
    """See `tessera.templates.addons.Controls`.

    Args:
        ask: calls a ControlNet's model.
        images: prepared control images (h, w, 3) of UINT8, by digest.
    """

    def __init__(self, ask: Ask, images: Mapping[str, Array]) -> None:
        self._ask = ask
        self._images = images

    def begin(
        self, controls: Sequence[RecordedControl], conditions: Conditions
    ) -> RecordingControls:
        """See `Controls.begin`."""
        images = [torch.from_numpy(self._images[control.image]) for control in controls]
        told = [_Told(*each) for each in zip(controls, images, strict=True)]
        return RecordingControls(self._ask, told, conditions)


class _Told:
    """A ControlNet of a recording, and the key that its model knows the image by.

    Keys of requests are not negative. Random ones need no agreement between processes.
    """

    def __init__(self, control: RecordedControl, image: torch.Tensor) -> None:
        self.control = control
        self.image = image
        self.key = -1 - secrets.randbelow(_KEYS)


@dataclass(frozen=True)
class _Answer:
    """A ControlNet's residuals (flat) for some rows of a batch."""

    control: RecordedControl
    rows: list[int]
    residuals: torch.Tensor


class RecordingControls:
    """See `tessera.templates.addons.Controlled`.

    Args:
        ask: calls a ControlNet's model.
        told: the recording's ControlNets.
        conditions: the UNet's, one row.
    """

    def __init__(self, ask: Ask, told: Sequence[_Told], conditions: Conditions) -> None:
        self._ask = ask
        self._told = told
        self._fixed = {
            field: conditions[name] for field, name in CONDITIONS.items() if name in conditions
        }
        for each in told:
            self._tell(each)

    def start(
        self, evaluations: Sequence[int], sample: torch.Tensor, timestep: torch.Tensor
    ) -> Join:
        """See `Controlled.start`."""
        answers = []
        for each in self._told:
            first, last = each.control.first, each.control.last
            rows = [row for row, place in enumerate(evaluations) if first <= place < last]
            if rows:
                asked = {
                    "KEYS": torch.tensor([each.key] * len(rows)),
                    "SAMPLE": sample[rows],
                    "TIMESTEP": timestep[rows],
                }
                answers.append(_Answer(each.control, rows, self._asked(each, asked)))
        return lambda encoded: _joined(encoded, answers)

    def _asked(self, each: _Told, inputs: Tensors) -> torch.Tensor:
        """A ControlNet's answer, even if it has forgotten the image since."""
        try:
            return self._ask(each.control.name, inputs)
        except TesseraError as error:
            if error.status != FORGOTTEN:
                raise
        self._tell(each)
        return self._ask(each.control.name, inputs)

    def _tell(self, each: _Told) -> None:
        inputs = {"KEYS": torch.tensor([each.key]), "IMAGE": each.image, **self._fixed}
        if each.control.mode is not None:
            inputs["MODE"] = torch.tensor([each.control.mode])
        self._ask(each.control.name, inputs)


def _joined(
    encoded: dict[str, torch.Tensor], answers: Sequence[_Answer]
) -> dict[str, torch.Tensor]:
    """What `tessera.controls.fanout.Join.add` adds, beside what it is added to."""
    skips = [name for name in encoded if name != "mid"]
    names = [*sorted(skips, key=lambda name: int(name.rpartition("_")[2])), "mid"]
    shapes, joined = [encoded[name].shape[1:] for name in names], dict(encoded)
    for answer in answers:
        name, scales = answer.control.name, answer.control.use.scales(len(names))
        maps = unpack(name, answer.residuals, len(answer.rows), shapes)
        for place, residual, scale in zip(names, maps, scales, strict=True):
            target = joined[place]
            rows = torch.tensor(answer.rows, device=target.device)
            part = residual.to(target.device, target.dtype)
            joined[place] = target.index_add(0, rows, part, alpha=scale)
    return joined
