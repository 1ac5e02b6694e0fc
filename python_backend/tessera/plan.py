"""What `encode` decided about one request: the uniform description that travels with it through the
ensemble.

Standard library only; `request.py` makes plans out of inputs.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tessera.contract import SCHEDULERS, EditQuality, MaskTone
from tessera.contract.limits import DEFAULT_PRIORITY, FEATHER


@dataclass(frozen=True, order=True)
class AdapterUse:
    """A LoRA in one network, by name, content and weight."""

    name: str
    digest: str
    weight: float


@dataclass(frozen=True)
class ControlUse:
    """A ControlNet that guides one picture.

    Attributes:
        name: of the ControlNet.
        scale: multiplies its residuals.
        start, end: shares of the steps between which it is active.
        mode: kind of the control image, for a Union.
        guess_mode: as diffusers' `guess_mode`: it guides the branch of the prompt only, and its
            first residuals count a tenth, the last one in full.
        pooled: its residuals are means over the picture. It then guides the branch of the prompt
            only, too, as in diffusers.
        image: digest of the prepared control image, in edits that may be sparse.
    """

    name: str
    scale: float
    start: float
    end: float
    mode: int | None = None
    guess_mode: bool = False
    pooled: bool = False
    image: str = ""

    @property
    def of_prompt_only(self) -> bool:
        """Whether a guided request's negative branch is left alone."""
        return self.guess_mode or self.pooled

    def scales(self, count: int) -> list[float]:
        """Factors of its residuals, the mid block's last."""
        if not self.guess_mode or self.pooled:
            return [self.scale] * count
        return [self.scale * 10.0 ** (i / (count - 1) - 1) for i in range(count)]

    @property
    def report(self) -> dict[str, Any]:
        """As INFO has it."""
        said: dict[str, Any] = {
            "name": self.name,
            "scale": self.scale,
            "start": self.start,
            "end": self.end,
        }
        if self.mode is not None:
            said["mode"] = self.mode
        return said | {"guess_mode": True} if self.guess_mode else said

    def applies_at(self, step: int, steps: int) -> bool:
        """Whether it takes part in a step, as diffusers' `controlnet_keep` decides it.

        Args:
            step: counts evaluations of the UNet from 0, the first that is run.
            steps: how many are run.
        """
        return not (step / steps < self.start or (step + 1) / steps > self.end)

    def matters(self, steps: int) -> bool:
        """Whether it changes a picture of that many evaluations at all."""
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
        embedded: whether the UNet takes the guidance scale as an input. Then there is no negative
            branch at all.
        first_step: steps that are skipped because the picture starts from a template at less than
            full strength.
        mode: `MODE` of an edit; "dense" for a generation.
        template: id of the template; empty for a generation.
        quality: `EDIT_QUALITY` of an edit.
        texts: what an edit's branches are recorded by, see `tessera.templates.texts.text_id`.
        recorded: whether the template's activations were there for these steps when `encode`
            looked.
        mask_ratio: share of the picture's pixels that may change; `None` for a generation.
        soft: whether the edit's mask says how strongly each latent is edited.
        feather: pixels inside the border of the mask within which an edit fades in.
        tone: `MASK_TONE` of an edit.
        prompt_count: one, and one for each region of an edit.
        started: `time.monotonic()` at which `encode` took the request.
        shapes: those of the tensors that travel with the plan, by name, and of LATENTS.
        sums: checksums of the tensors that `encode` has made, by name.
        deadline: `time.monotonic()` after which nobody waits for the picture; 0 if somebody always
            does.
        priority: 1 is denoised first.
        encode_ms: time `encode` took.
        engine_ms: the part of it inside the text encoder's engine.
        prompt_tokens: tokens of the prompt, with those that begin and end it.
        prompt_tokens_dropped: tokens beyond the last chunk, which the picture ignores.
        prompt_chunks: windows of the text encoder that both prompts fill.
        clip_skip: how many of the text encoders' last layers the prompt skips.
        words: of textual inversion in both prompts.
        text_refit_ms: time it took to put LoRAs into the text encoders.
        loras: as INFO reports them.
        adapters: what is merged into the UNet, in an order that does not depend on the request's.
        adapters_by: the step from which on it has to be; 0 without `lora_policy` bounded.
        controls: the ControlNets, in the order of the images in CONTROL.
        control_load_ms: time that `render` waited for them to be loaded.
        prepared: what was done to each of these images, as INFO reports it.
        prompts: the prompt and the negative one, for the log; empty unless it shall have them.
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
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sums: dict[str, int] = field(default_factory=dict)
    deadline: float = 0.0
    priority: int = DEFAULT_PRIORITY
    embedded: bool = False
    first_step: int = 0
    mode: str = "dense"
    template: str = ""
    quality: str = EditQuality.FAST
    texts: tuple[str, ...] = ()
    recorded: bool = False
    mask_ratio: float | None = None
    soft: bool = False
    feather: int = FEATHER
    tone: str = MaskTone.DRAWN
    prompt_count: int = 1
    encode_ms: float = 0.0
    engine_ms: float = 0.0
    prompt_tokens: int = 0
    prompt_tokens_dropped: int = 0
    prompt_chunks: int = 1
    clip_skip: int = 0
    words: tuple[str, ...] = ()
    text_refit_ms: float = 0.0
    loras: tuple[dict[str, Any], ...] = ()
    adapters: tuple[AdapterUse, ...] = ()
    adapters_by: int = 0
    controls: tuple[ControlUse, ...] = ()
    control_load_ms: float = 0.0
    prepared: tuple[dict[str, Any], ...] = ()
    prompts: tuple[str, ...] = ()

    @property
    def guided(self) -> bool:
        """Whether the UNet runs a second, negative branch for this request."""
        return self.guidance > 1.0 and not self.embedded

    @cached_property
    def evaluations(self) -> list[int]:
        """The evaluations of the UNet to run, among those of the whole schedule."""
        return SCHEDULERS[self.scheduler].evaluations(self.steps, self.first_step)

    @property
    def to_record(self) -> bool:
        """Whether the template has to be recorded before this edit can run."""
        return self.mode == "sparse" and not self.recorded

    @property
    def texts_to_record(self) -> tuple[str, ...]:
        """What a template is recorded by for an edit that waits, each once: the empty prompt for
        `fast` and for several prompts, else the edit's own.
        """
        if self.quality == EditQuality.FAST or self.prompt_count > 1 or not self.texts:
            return ("",)
        return tuple(dict.fromkeys(self.texts))

    def to_json(self) -> bytes:
        """As it travels between models."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Plan:
        """Inverse of `to_json`."""
        content = json.loads(text)
        adapters = tuple(AdapterUse(**use) for use in content.pop("adapters"))
        controls = tuple(ControlUse(**use) for use in content.pop("controls"))
        listed: dict[str, Any] = {
            name: tuple(content[name])
            for name in ("loras", "prepared", "prompts", "texts", "words")
        }
        listed["shapes"] = {name: tuple(shape) for name, shape in content["shapes"].items()}
        return cls(**content | listed | {"adapters": adapters, "controls": controls})
