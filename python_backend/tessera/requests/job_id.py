"""Reads JOB_ID. Light, like `parameters`."""

from __future__ import annotations

from tessera.contract import MAX_JOB_ID
from tessera.errors import InvalidInput
from tessera.requests.fields import Inputs, text_of
from tessera.requests.parameters import JOB_IDS, checked_job_id


def read_job_id(inputs: Inputs) -> str:
    """JOB_ID, or "" if it was left out.

    Raises:
        InvalidInput: it is too long or holds other characters than printable ASCII.
    """
    if "JOB_ID" not in inputs:
        return ""
    job_id = text_of(inputs, "JOB_ID", "", MAX_JOB_ID, JOB_IDS)
    return checked_job_id("JOB_ID", job_id)


def given_job_id(inputs: Inputs) -> str:
    """JOB_ID of a request that may be refused, or "" if there is none that is accepted."""
    try:
        return read_job_id(inputs)
    except InvalidInput:
        return ""
