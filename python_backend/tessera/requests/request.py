"""Checks a request's inputs and fills in what it leaves out.

Inputs arrive as numpy arrays with their leading batch dimension of 1, keyed by the contract's
names; Triton has already checked data types and ranks. Knows the contract and the bundle's
manifest, nothing of networks.
"""

from __future__ import annotations

import math
import secrets
import uuid
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tessera import contract
from tessera.codec.prompts import heaviest
from tessera.errors import InvalidInput
from tessera.manifest import Manifest
from tessera.requests.controls import Control, read_controls
from tessera.requests.edit import EditChoice, FindTemplate, no_templates, read_edit, size_of_edit
from tessera.requests.elements import elements_of
from tessera.requests.fields import Inputs, scalar_of, text_of
from tessera.requests.job_id import read_job_id

LoraWeight = Annotated[
    float,
    Field(ge=-contract.MAX_LORA_WEIGHT, le=contract.MAX_LORA_WEIGHT, allow_inf_nan=False),
]


class Lora(BaseModel):
    """One element of LORAS; `text_weight` replaces `weight` in the text encoders."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    weight: LoraWeight = 1.0
    text_weight: LoraWeight | None = None


@dataclass(frozen=True)
class Request:
    """A `generate` or `edit` request in which every field has an accepted value; `edit` is `None`
    for a generation.
    """

    prompt: str
    negative_prompt: str | None
    syntax: str
    clip_skip: int
    seed: int
    steps: int
    guidance: float
    width: int
    height: int
    scheduler: str
    job_id: str
    edit: EditChoice | None = None
    loras: tuple[Lora, ...] = ()
    controls: tuple[Control, ...] = ()
    region_prompts: tuple[str, ...] = ()

    @property
    def prompts(self) -> tuple[str, ...]:
        """Of the picture, and of each region of an edit."""
        return (self.prompt, *self.region_prompts)


def read_request(
    inputs: Inputs,
    manifest: Manifest,
    find_template: FindTemplate = no_templates,
    *,
    quality: str = contract.EditQuality.BALANCED,
) -> Request:
    """Check inputs and fill in defaults; a request with a MASK is an edit.

    Args:
        inputs: of `generate` or `edit`.
        manifest: of the bundle.
        find_template: the picture of a template, by its id.
        quality: of an edit that names none.

    Raises:
        InvalidInput: the first field whose value is not accepted.
    """
    defaults = manifest.defaults
    syntax = _word(inputs, "PROMPT_SYNTAX", contract.PROMPT_SYNTAXES[0], contract.PROMPT_SYNTAXES)
    prompt = _said(inputs, "PROMPT", syntax)
    steps, scheduler = read_schedule(inputs, manifest)
    width = _size(inputs, "WIDTH", defaults.width, manifest)
    height = _size(inputs, "HEIGHT", defaults.height, manifest)
    edit = None
    if "MASK" in inputs:
        edit = read_edit(inputs, manifest, steps, find_template, quality)
        width, height = size_of_edit(inputs, edit)
    return Request(
        prompt=prompt,
        negative_prompt=_negative_prompt(inputs, syntax),
        syntax=syntax,
        clip_skip=_clip_skip(inputs, manifest),
        seed=_seed(inputs),
        steps=steps,
        guidance=_guidance(inputs, defaults.guidance),
        width=width,
        height=height,
        scheduler=scheduler,
        job_id=read_job_id(inputs) or uuid.uuid4().hex,
        edit=edit,
        loras=read_loras(inputs),
        controls=read_controls(inputs, manifest, width, height, masked=edit is not None),
        region_prompts=_region_prompts(inputs, manifest, syntax) if edit is not None else (),
    )


def read_loras(inputs: Inputs) -> tuple[Lora, ...]:
    """LORAS.

    Raises:
        InvalidInput: it is not what is accepted.
    """
    return tuple(elements_of(inputs, "LORAS", Lora, contract.MAX_LORAS))


def _prompt(inputs: Inputs, name: str, syntax: str) -> str:
    text = text_of(inputs, name, "", contract.MAX_PROMPT)
    weight = heaviest(text) if syntax == contract.PromptSyntax.WEIGHTED else 1.0
    if not abs(weight) <= contract.MAX_TOKEN_WEIGHT:  # NaN, too
        most = contract.MAX_TOKEN_WEIGHT
        accepted = f"weights from -{most:g} to {most:g}; brackets within brackets multiply"
        raise InvalidInput.described(name, f"has a part of weight {weight:g}", accepted)
    return text


def _said(inputs: Inputs, name: str, syntax: str) -> str:
    """A prompt that says something."""
    prompt = _prompt(inputs, name, syntax)
    if not prompt.strip():
        accepted = f"1 to {contract.MAX_PROMPT} characters that are not all blank"
        raise InvalidInput(name, prompt, accepted)
    return prompt


def _region_prompts(inputs: Inputs, manifest: Manifest, syntax: str) -> tuple[str, ...]:
    texts = inputs["REGION_PROMPTS"].reshape(-1).tolist() if "REGION_PROMPTS" in inputs else []
    most = manifest.limits.max_rows - 2  # beside PROMPT and the negative prompt
    if len(texts) > most:
        problem = f"has {len(texts)} prompts"
        raise InvalidInput.described("REGION_PROMPTS", problem, f"at most {most} with this bundle")
    named = {f"REGION_PROMPTS[{i}]": np.array([text], object) for i, text in enumerate(texts)}
    return tuple(_said(named, name, syntax) for name in named)


def _negative_prompt(inputs: Inputs, syntax: str) -> str | None:
    """`None` if it was left out: some checkpoints tell that from the empty prompt."""
    if "NEGATIVE_PROMPT" not in inputs:
        return None
    return _prompt(inputs, "NEGATIVE_PROMPT", syntax)


@dataclass(frozen=True)
class Prompts:
    """A prompt, as it is read; fields are those of `Request`."""

    prompt: str
    negative_prompt: str | None
    syntax: str
    clip_skip: int


def read_prompts(inputs: Inputs, manifest: Manifest) -> Prompts:
    """PROMPT and what goes with it, for a recording; everything may be left out.

    Raises:
        InvalidInput: the first field whose value is not accepted.
    """
    syntax = _word(inputs, "PROMPT_SYNTAX", contract.PROMPT_SYNTAXES[0], contract.PROMPT_SYNTAXES)
    prompt = _prompt(inputs, "PROMPT", syntax) if "PROMPT" in inputs else ""
    negative = _negative_prompt(inputs, syntax)
    return Prompts(prompt, negative, syntax, _clip_skip(inputs, manifest))


def _clip_skip(inputs: Inputs, manifest: Manifest) -> int:
    layers = int(scalar_of(inputs["CLIP_SKIP"])) if "CLIP_SKIP" in inputs else 0
    most = manifest.limits.clip_skip
    if not 0 <= layers <= most:
        raise InvalidInput("CLIP_SKIP", layers, f"an integer from 0 to {most}" if most else "0")
    return layers


def read_action(inputs: Inputs, accepted: tuple[str, ...]) -> str:
    """ACTION, one of `accepted`.

    Raises:
        InvalidInput: it is another word.
    """
    return _word(inputs, "ACTION", "", accepted)


def read_decoder(inputs: Inputs) -> str:
    """DECODER of a preview, or the default.

    Raises:
        InvalidInput: it is another word.
    """
    return _word(inputs, "DECODER", contract.PREVIEW_DECODERS[0], contract.PREVIEW_DECODERS)


def _word(inputs: Inputs, name: str, default: str, accepted: tuple[str, ...]) -> str:
    word = text_of(inputs, name, default, 100)
    if word not in accepted:
        raise InvalidInput(name, word, ", ".join(accepted))
    return word


def _seed(inputs: Inputs) -> int:
    if "SEED" not in inputs:
        return secrets.randbelow(contract.RANDOM_SEEDS)
    seed = int(scalar_of(inputs["SEED"]))
    if seed < 0:
        raise InvalidInput("SEED", seed, f"an integer from 0 to {contract.MAX_SEED}")
    return seed


def read_schedule(inputs: Inputs, manifest: Manifest) -> tuple[int, str]:
    """STEPS and SCHEDULER, or the bundle's.

    Raises:
        InvalidInput: a value is not accepted.
    """
    defaults = manifest.defaults
    steps = _steps(inputs, defaults.steps, manifest)
    return steps, _scheduler(inputs, manifest)


def _steps(inputs: Inputs, default: int, manifest: Manifest) -> int:
    steps = int(scalar_of(inputs["STEPS"])) if "STEPS" in inputs else default
    name = _scheduler(inputs, manifest)
    most = manifest.max_steps(name)
    if not 1 <= steps <= most:
        raise InvalidInput("STEPS", steps, f"an integer from 1 to {most} with SCHEDULER {name}")
    return steps


def _guidance(inputs: Inputs, default: float) -> float:
    guidance = float(scalar_of(inputs["GUIDANCE"])) if "GUIDANCE" in inputs else default
    if not math.isfinite(guidance) or not 0 <= guidance <= contract.MAX_GUIDANCE:
        raise InvalidInput("GUIDANCE", guidance, f"a number from 0 to {contract.MAX_GUIDANCE:g}")
    return guidance


def _size(inputs: Inputs, name: str, default: int, manifest: Manifest) -> int:
    size = int(scalar_of(inputs[name])) if name in inputs else default
    low, high, step = manifest.limits.min_size, manifest.limits.max_size, contract.SIZE_STEP
    if not low <= size <= high or size % step:
        raise InvalidInput(name, size, f"a multiple of {step} from {low} to {high}")
    return size


def _scheduler(inputs: Inputs, manifest: Manifest) -> str:
    name = text_of(inputs, "SCHEDULER", manifest.defaults.scheduler, 100)
    if name not in manifest.offered:
        raise InvalidInput("SCHEDULER", name, contract.scheduler_list(manifest.offered))
    return name
