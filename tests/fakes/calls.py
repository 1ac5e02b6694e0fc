"""Calls of Tessera's Triton models, as Triton makes them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from tests.fakes import triton_python_backend_utils as pb_utils
from tests.samples.requests import inputs


def load(name: str) -> ModuleType:
    import importlib

    return importlib.import_module(f"tessera.triton.{name}")


def call(model: Any, arrays: dict[str, Any]) -> pb_utils.InferenceResponse:
    """What BLS does with a request for a plain model."""
    response: pb_utils.InferenceResponse = model.execute([pb_utils.Request(called=True, **arrays)])[
        0
    ]
    return response


def run_to_end(models: dict[str, Any], arrays: dict[str, Any]) -> pb_utils.InferenceResponse:
    """What Triton's iterative scheduler does with one request."""
    request = pb_utils.Request(900, True, **arrays)
    for _ in range(100):
        response: pb_utils.InferenceResponse | None = models["denoise"].execute([request])[0]
        if response is not None:
            return response
    raise AssertionError("never finished")


def encoded(models: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Inputs of `render` for a request."""
    response = models["encode"].execute([pb_utils.Request(**inputs(**values))])[0]
    assert response.error is None, response.error
    return dict(response.arrays())


def sequence(models: dict[str, Any], identity: int, **values: Any) -> pb_utils.Request:
    """A request as `denoise` gets it."""
    arrays = encoded(models, **values)
    return pb_utils.Request(identity, True, **arrays, QUEUED_TICK=np.array([[0]]))


def phase(models: dict[str, Any], job_id: str) -> str:
    return str(models["board"].status(job_id).phase)


def message(response: pb_utils.InferenceResponse) -> tuple[str, int]:
    assert response.error is not None
    return response.error.message(), response.error.code()


def edit_inputs(strength: float = 1.0, **values: Any) -> dict[str, Any]:
    image = np.random.default_rng(1).integers(0, 256, (1, 96, 64, 3), np.uint8)
    mask = np.zeros((1, 96, 64), np.uint8)
    mask[0, 16:48, 16:40] = 255
    strengths = np.array([[strength]], np.float32)
    return {**inputs(**values), "IMAGE": image, "MASK": mask, "STRENGTH": strengths}
