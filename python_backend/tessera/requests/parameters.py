"""Checks the parameters of a request: what comes beside its inputs, by name, in JSON's types.

Light: the `edit` model, which imports no networks, reads them, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from tessera.contract import LORA_POLICIES, MAX_JOB_ID
from tessera.contract.limits import DEFAULT_PRIORITY, PRIORITIES
from tessera.errors import InvalidInput
from tessera.plan import AdapterUse

TEXTS = "texts"
"""Name of the parameter that says by which prompts an edit's template is recorded."""

ADAPTERS = "adapters"
"""Name of the parameter that says with which adapter set an edit's template is recorded."""

HELD = "held"
"""Name of the parameter that says how many bytes of memory `edit` holds for a request."""

_BRANCHES = 2
_TEXT_ID = re.compile(r"([0-9a-f]{16})?")

JOB_IDS = f"1 to {MAX_JOB_ID} printable ASCII characters"
"""What is accepted as a job's id."""


def lora_policy_of(parameters: Mapping[str, object]) -> str:
    """The parameter `lora_policy`, or the default.

    Raises:
        InvalidInput: it is not one of those accepted.
    """
    policy = parameters.get("lora_policy", LORA_POLICIES[0])
    if policy not in LORA_POLICIES:
        raise InvalidInput("lora_policy", policy, ", ".join(LORA_POLICIES))
    return str(policy)


def priority_of(parameters: Mapping[str, object]) -> int:
    """The parameter `job_priority`, or the default. Triton keeps `priority` to itself.

    Raises:
        InvalidInput: it is none.
    """
    priority = parameters.get("job_priority", DEFAULT_PRIORITY)
    if type(priority) is not int or not 1 <= priority <= PRIORITIES:
        raise InvalidInput("job_priority", priority, f"an integer from 1 to {PRIORITIES}")
    return priority


def job_of(parameters: Mapping[str, object]) -> str | None:
    """The parameter `job_id`: the job that waits for a recording, or `None` if none does.

    Raises:
        InvalidInput: it is no job's id.
    """
    job_id = parameters.get("job_id")
    return None if job_id is None else checked_job_id("job_id", job_id)


def texts_of(parameters: Mapping[str, object]) -> tuple[str, ...]:
    """The parameter `texts`, ids of prompts with commas between; nothing if it is missing.

    Raises:
        InvalidInput: it holds anything else.
    """
    if TEXTS not in parameters:
        return ()
    texts = str(parameters[TEXTS]).split(",")
    if len(texts) > _BRANCHES or not all(map(_TEXT_ID.fullmatch, texts)):
        accepted = "one or two ids of 16 hexadecimal digits, or nothing for the empty prompt"
        raise InvalidInput(TEXTS, parameters[TEXTS], accepted)
    return tuple(texts)


def adapters_of(parameters: Mapping[str, object]) -> tuple[AdapterUse, ...]:
    """The parameter `adapters`; nothing if it is missing.

    Raises:
        InvalidInput: it is no JSON list of [name, digest, weight].
    """
    text = str(parameters.get(ADAPTERS, "[]"))
    try:
        uses = tuple(AdapterUse(*use) for use in json.loads(text))
    except (ValueError, TypeError, RecursionError):
        uses = None
    if uses is None or not all(map(_is_use, uses)):
        raise InvalidInput(ADAPTERS, text, "a JSON list of [name, digest, weight]")
    return uses


def adapters_text(adapters: tuple[AdapterUse, ...]) -> str:
    """Inverse of `adapters_of`."""
    return json.dumps([[use.name, use.digest, use.weight] for use in adapters])


def _is_use(use: AdapterUse) -> bool:
    named = isinstance(use.name, str) and isinstance(use.digest, str)
    return named and type(use.weight) in (int, float)


def checked_job_id(field: str, job_id: object) -> str:
    """A job's id as it was given in a field.

    Raises:
        InvalidInput: it is too long, or holds other characters than printable ASCII.
    """
    fine = isinstance(job_id, str) and job_id.isascii() and job_id.isprintable()
    if not isinstance(job_id, str) or not fine or not 1 <= len(job_id) <= MAX_JOB_ID:
        raise InvalidInput(field, job_id, JOB_IDS)
    return job_id
