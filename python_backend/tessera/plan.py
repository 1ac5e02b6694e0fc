"""What `encode` decided about one request: the uniform description that travels with it through the
ensemble.

Standard library only; `request.py` makes plans out of inputs.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class AdapterUse:
    """A LoRA in one network, by name, content and weight."""

    name: str
    digest: str
    weight: float


@dataclass(frozen=True)
class ControlUse:
    """A ControlNet that guides one picture.

    `scale` multiplies its residuals; it is active from `start` to `end`, both shares of the steps.
    """

    name: str
    scale: float
    start: float
    end: float

    def applies_at(self, step: int, steps: int) -> bool:
        """Whether it takes part in a step, as diffusers' `controlnet_keep` decides it.

        Args:
            step: counts from 0, the first step that is run.
            steps: how many are run.
        """
        return not (step / steps < self.start or (step + 1) / steps > self.end)

    def matters(self, steps: int) -> bool:
        """Whether it changes a picture of that many steps at all."""
        return self.scale != 0 and any(self.applies_at(step, steps) for step in range(steps))


@dataclass(frozen=True)
class Plan:
    """One image to make.

    Attributes:
        slot, ticket: place and generation of the job on the board.
        job_id: the caller's or a made one.
        seed: of the request's generator, as diffusers means it.
        width, height: pixels.
        guidance: classifier-free guidance scale; there is no negative branch at 1 or below.
        first_step: steps that are skipped because the picture starts from a template at less than
            full strength.
        mode: `MODE` of an edit; "dense" for a generation.
        template: id of the template; empty for a generation.
        recorded: whether the template's activations were there for these steps when `encode`
            looked.
        mask_ratio: share of the picture's pixels that may change; `None` for a generation.
        started: `time.time()` at which `encode` took the request.
        encode_ms: time `encode` took.
        engine_ms: the part of it inside the text encoder's engine.
        prompt_tokens_dropped: tokens beyond the text encoder's window, which the picture ignores.
        text_refit_ms: time it took to put LoRAs into the text encoders.
        loras: as INFO reports them.
        adapters: what is merged into the UNet, in an order that does not depend on the request's.
        adapters_by: the step from which on it has to be; 0 without `lora_policy` bounded.
        controls: the ControlNets, in the order of the images in CONTROL.
        control_load_ms: time that `render` waited for them to be loaded.
        prepared: what was done to each of these images, as INFO reports it.
    """

    slot: int
    ticket: int
    job_id: str
    seed: int
    steps: int
    guidance: float
    width: int
    height: int
    scheduler: str
    started: float
    first_step: int = 0
    mode: str = "dense"
    template: str = ""
    recorded: bool = False
    mask_ratio: float | None = None
    encode_ms: float = 0.0
    engine_ms: float = 0.0
    prompt_tokens_dropped: int = 0
    text_refit_ms: float = 0.0
    loras: tuple[dict[str, Any], ...] = ()
    adapters: tuple[AdapterUse, ...] = ()
    adapters_by: int = 0
    controls: tuple[ControlUse, ...] = ()
    control_load_ms: float = 0.0
    prepared: tuple[dict[str, Any], ...] = ()

    @property
    def guided(self) -> bool:
        """Whether the UNet runs a second, negative branch for this request."""
        return self.guidance > 1.0

    @property
    def to_record(self) -> bool:
        """Whether the template has to be recorded before this edit can run."""
        return self.mode == "sparse" and not self.recorded

    def to_json(self) -> bytes:
        """As it travels between models."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Plan:
        """Inverse of `to_json`."""
        content = json.loads(text)
        adapters = tuple(AdapterUse(**use) for use in content.pop("adapters"))
        controls = tuple(ControlUse(**use) for use in content.pop("controls"))
        listed = {name: tuple(content[name]) for name in ("loras", "prepared")}
        return cls(**content | listed | {"adapters": adapters, "controls": controls})
