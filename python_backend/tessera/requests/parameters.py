"""Checks the parameters of a request: what comes beside its inputs, by name, in JSON's types.

Light: the `edit` model, which imports no networks, reads them, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from tessera.contract import LORA_POLICIES, MAX_JOB_ID
from tessera.errors import InvalidInput

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


def job_of(parameters: Mapping[str, object]) -> str | None:
    """The parameter `job_id`: the job that waits for a recording, or `None` if none does.

    Raises:
        InvalidInput: it is no job's id.
    """
    job_id = parameters.get("job_id")
    return None if job_id is None else checked_job_id("job_id", job_id)


def checked_job_id(field: str, job_id: object) -> str:
    """A job's id as it was given in a field.

    Raises:
        InvalidInput: it is too long, or holds other characters than printable ASCII.
    """
    fine = isinstance(job_id, str) and job_id.isascii() and job_id.isprintable()
    if not isinstance(job_id, str) or not fine or not 1 <= len(job_id) <= MAX_JOB_ID:
        raise InvalidInput(field, job_id, JOB_IDS)
    return job_id
