"""Calls of Tessera's Triton models, as Triton makes them."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from tessera.contract import Stats, checksum
from tessera.plan import Plan
from tessera.shared.settings import ServerSettings
from tessera.shared.signing import ServerKey
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.samples.requests import inputs


def load(name: str) -> ModuleType:
    return importlib.import_module(f"tessera.triton.{name}")


def config_of_denoise(slots: int) -> dict[str, Any]:
    """What `denoise` reads of its `config.pbtxt`."""
    return {"parameters": {"slots": {"string_value": str(slots)}}}


def call(
    model: Any, arrays: dict[str, Any], parameters: dict[str, Any] | None = None
) -> pb_utils.InferenceResponse:
    """What BLS does with a request for a plain model."""
    request = pb_utils.Request(called=True, parameters=parameters, **arrays)
    response: pb_utils.InferenceResponse = model.execute([request])[0]
    return response


def call_as_sent(name: str, model: Any, arrays: dict[str, Any]) -> pb_utils.InferenceResponse:
    """The same, with the parameters that the latest request for that model had."""
    return call(model, arrays, pb_utils.PARAMETERS.get(name))


def run_to_end(models: dict[str, Any], arrays: dict[str, Any]) -> pb_utils.InferenceResponse:
    """What Triton's iterative scheduler does with one request."""
    request = pb_utils.Request(900, True, **arrays)
    for _ in range(100):
        response: pb_utils.InferenceResponse | None = models["denoise"].execute([request])[0]
        if response is not None:
            return response
    raise AssertionError("never finished")


def encoded(models: dict[str, Any], priority: int = 2, **values: Any) -> dict[str, Any]:
    """Inputs of `render` for a request."""
    parameters = {"job_priority": priority}
    request = pb_utils.Request(parameters=parameters, **inputs(**values))
    response = models["encode"].execute([request])[0]
    assert response.error is None, response.error
    return dict(response.arrays())


def plan_in(arrays: dict[str, Any]) -> Plan:
    """The plan among the outputs of `encode`."""
    path = ServerSettings.from_environment().key
    return Plan.from_json(ServerKey(path).verified("PLAN", arrays["PLAN"][0, 0]))


def signed(plan: Plan) -> np.ndarray[Any, Any]:
    """The PLAN that `encode` would have made."""
    text = ServerKey(ServerSettings.from_environment().key).sign("PLAN", plan.to_json())
    return np.array([[text]], object)


def summed(arrays: dict[str, Any]) -> dict[str, Any]:
    """The same, with the plan that `encode` would have made if these were its tensors."""
    plan = plan_in(arrays)
    sums = {name: checksum(arrays[name]) for name in plan.sums}
    return arrays | {"PLAN": signed(replace(plan, sums=sums))}


def stats_in(arrays: dict[str, Any]) -> Any:
    """The stats among the outputs of `denoise`, as an object of JSON."""
    path = ServerSettings.from_environment().key
    return json.loads(ServerKey(path).verified("STATS", arrays["STATS"][0, 0]))["stats"]


def denoised(arrays: dict[str, Any], latents: np.ndarray[Any, Any]) -> dict[str, Any]:
    """LATENTS and STATS as `denoise` would have answered them for a PLAN."""
    handing = importlib.import_module("tessera.triton.handing")
    tensors = handing.denoised(plan_in(arrays), latents[0], Stats())
    return {tensor.name(): tensor.as_numpy() for tensor in tensors}


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
