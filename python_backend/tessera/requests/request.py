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

from pydantic import BaseModel, ConfigDict, Field

from tessera import contract
from tessera.errors import InvalidInput
from tessera.manifest import Manifest
from tessera.requests.controls import Control, read_controls
from tessera.requests.edit import EditChoice, FindTemplate, no_templates, read_edit, size_of_edit
from tessera.requests.elements import elements_of
from tessera.requests.fields import Inputs, scalar_of, text_of
from tessera.requests.parameters import JOB_IDS, checked_job_id

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


def read_request(
    inputs: Inputs, manifest: Manifest, find_template: FindTemplate = no_templates
) -> Request:
    """Check inputs and fill in defaults; a request with a MASK is an edit.

    Args:
        inputs: of `generate` or `edit`.
        manifest: of the bundle.
        find_template: the picture of a template, by its id.

    Raises:
        InvalidInput: the first field whose value is not accepted.
    """
    defaults = manifest.defaults
    prompt = text_of(inputs, "PROMPT", "", contract.MAX_PROMPT)
    if not prompt.strip():
        accepted = f"1 to {contract.MAX_PROMPT} characters that are not all blank"
        raise InvalidInput("PROMPT", prompt, accepted)
    steps, scheduler = read_schedule(inputs, manifest)
    width = _size(inputs, "WIDTH", defaults.width, manifest)
    height = _size(inputs, "HEIGHT", defaults.height, manifest)
    edit = read_edit(inputs, manifest, steps, find_template) if "MASK" in inputs else None
    if edit is not None:
        width, height = size_of_edit(inputs, edit)
    loras = tuple(elements_of(inputs, "LORAS", Lora, contract.MAX_LORAS))
    return Request(
        prompt=prompt,
        negative_prompt=_negative_prompt(inputs),
        seed=_seed(inputs),
        steps=steps,
        guidance=_guidance(inputs, defaults.guidance),
        width=width,
        height=height,
        scheduler=scheduler,
        job_id=read_job_id(inputs) or uuid.uuid4().hex,
        edit=edit,
        loras=loras,
        controls=read_controls(inputs, manifest, width, height),
    )


def _negative_prompt(inputs: Inputs) -> str | None:
    """`None` if it was left out: some checkpoints tell that from the empty prompt."""
    if "NEGATIVE_PROMPT" not in inputs:
        return None
    return text_of(inputs, "NEGATIVE_PROMPT", "", contract.MAX_PROMPT)


def read_job_id(inputs: Inputs) -> str:
    """JOB_ID, or "" if it was left out.

    Raises:
        InvalidInput: it is too long or holds other characters than printable ASCII.
    """
    if "JOB_ID" not in inputs:
        return ""
    job_id = text_of(inputs, "JOB_ID", "", contract.MAX_JOB_ID, JOB_IDS)
    return checked_job_id("JOB_ID", job_id)


def read_action(inputs: Inputs, accepted: tuple[str, ...]) -> str:
    """ACTION, one of `accepted`.

    Raises:
        InvalidInput: it is another word.
    """
    action = text_of(inputs, "ACTION", "", 100)
    if action not in accepted:
        raise InvalidInput("ACTION", action, ", ".join(accepted))
    return action


def _seed(inputs: Inputs) -> int:
    if "SEED" not in inputs:
        return secrets.randbelow(contract.MAX_SEED)
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
    steps = _steps(inputs, defaults.steps, defaults.scheduler)
    return steps, _scheduler(inputs, defaults.scheduler)


def _steps(inputs: Inputs, default: int, default_scheduler: str) -> int:
    steps = int(scalar_of(inputs["STEPS"])) if "STEPS" in inputs else default
    name = _scheduler(inputs, default_scheduler)
    most = contract.SCHEDULERS[name].max_steps
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


def _scheduler(inputs: Inputs, default: str) -> str:
    name = text_of(inputs, "SCHEDULER", default, 100)
    if name not in contract.SCHEDULERS:
        raise InvalidInput("SCHEDULER", name, ", ".join(contract.SCHEDULERS))
    return name
