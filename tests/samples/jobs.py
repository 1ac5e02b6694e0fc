"""Jobs of a running server."""

from __future__ import annotations

import time
import uuid

from tessera.errors import UnknownJob
from tessera_client import Client, JobStatus


def unique(name: str) -> str:
    """A job id that no other test uses."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def wait_for_step(client: Client, job_id: str, step: int) -> JobStatus:
    """Its status once it is there and has made so many steps."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            status = client.status(job_id)
        except UnknownJob:
            continue
        if status.step >= step:
            return status
    raise AssertionError(f"{job_id} never reached step {step}")
