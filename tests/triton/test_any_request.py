"""Whatever the fields and parameters of a request are: an answer that blames the caller or says
later, every process alive, and the same picture for the next good request.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from bench.server import Server
from tessera import contract
from tessera.contract import MODELS, TensorSpec
from tessera.shared.processes import model_processes
from tessera_client import Client
from tests.samples.servers import family_of

Array = np.ndarray[Any, Any]
BLAMES = {"400", "404", "503"} | {
    f"StatusCode.{name}"
    for name in ("INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE", "CANCELLED", "UNIMPLEMENTED")
}
WORDS = (
    *contract.MODES,
    *contract.JOB_ACTIONS,
    *contract.TEMPLATE_ACTIONS,
    *contract.ADAPTER_ACTIONS,
    *contract.PREVIEW_DECODERS,
    *contract.PROMPT_SYNTAXES,
    *contract.SCHEDULERS,
    "a red circle",
    '[{"name": "night"}]',
    '[{"name": "night", "weight": 1e308, "text_weight": null}]',
    '[{"name": "edges"}]',
    '[{"name": "edges", "scale": NaN, "preprocess": "canny", "resize": "fit"}]',
    "[" * 2000,
    "((a:1e9))",
    "0123456789abcdef",
)
NUMBERS = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "UINT8": np.uint8}
ACTIONS = {
    "jobs": contract.JOB_ACTIONS,
    "templates": contract.TEMPLATE_ACTIONS,
    "adapters": contract.ADAPTER_ACTIONS,
}
FEW_SIDES = st.sampled_from((64, 64, 1, 2))
FEW = st.sampled_from((-1, 0, 1, 2, 64, 72, 100, 1001, 100_000, 2**31 - 1, -(2**31)))
"""Neither a picture of many steps nor a large one: those are accepted, and take long."""
TEXTS = st.sampled_from(WORDS).map(str.encode) | st.binary(max_size=40)
GOOD: dict[str, tuple[Any, ...]] = {
    "PROMPT": (b"a red circle",),
    "PROMPT_SYNTAX": contract.PROMPT_SYNTAXES,
    "CLIP_SKIP": (0, 1),
    "STEPS": (1, 2),
    "GUIDANCE": (1.0, 4.0),
    "WIDTH": (64, 72),
    "HEIGHT": (64, 72),
    "SCHEDULER": ("euler", "lcm"),
    "LORAS": ("[]", '[{"name": "night"}]'),
    "CONTROLS": ("[]", '[{"name": "edges"}]'),
    "JOB_ID": ("any",),
    "STRENGTH": (0.5, 1.0),
    "MODE": contract.MODES,
    "EDIT_QUALITY": contract.EDIT_QUALITIES,
    "MASK_KIND": contract.MASK_KINDS,
    "MASK_FILL": contract.MASK_FILLS,
    "MASK_FEATHER": (1, 16),
    "MASK_TONE": contract.MASK_TONES,
    "DECODER": contract.PREVIEW_DECODERS,
    "COPIES": (1,),
}
PARAMETERS = st.dictionaries(
    st.sampled_from(("lora_policy", "job_priority", "job_id", "tessera_called", "other")),
    st.booleans() | st.integers(-5, 5) | st.sampled_from(("exact", "bounded", "", "\x00", "high")),
    max_size=3,
)
QUEUES = st.fixed_dictionaries(
    {}, optional={"priority": st.integers(0, 9), "timeout": st.sampled_from((1, 10**7, 2**62))}
)
MIXED = st.lists(st.integers(0, 72), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn, spec: TensorSpec, good: tuple[Any, ...]) -> Array:
    """A value of a field: mostly of its type and shape, and often a good one."""
    odd = draw(st.integers(0, 49))
    dtype = draw(st.sampled_from(("BYTES", *NUMBERS))) if odd == 0 else spec.dtype
    side = st.sampled_from((64, 64, 64, 72, 1, 0))
    dims = tuple(d if d > 0 else draw(side if i else FEW_SIDES) for i, d in enumerate(spec.dims))
    shape = draw(MIXED) if odd == 1 else (1, *dims)
    if good and dtype == spec.dtype and draw(st.integers(0, 4)):
        value = draw(st.sampled_from(good))
    elif dtype == "FP32":
        value = draw(st.floats(width=32))
    else:
        value = draw(TEXTS if dtype == "BYTES" else FEW)
    if dtype == "BYTES":
        return np.full(shape, value.encode() if isinstance(value, str) else value, object)
    with np.errstate(all="ignore"):
        return np.full(shape, np.array(value).astype(NUMBERS[dtype]))


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, dict[str, Array], dict[str, Any]]:
    """Model, inputs, and further options of a client's `infer`."""
    model = draw(st.sampled_from(sorted(MODELS)))
    good = {**GOOD, "ACTION": ACTIONS.get(model, ())}
    specs = [s for s in MODELS[model].inputs if not s.optional or not draw(st.integers(0, 2))]
    arrays = {s.name: draw(tensors(s, good.get(s.name, ()))) for s in specs}
    if "STEPS" not in arrays and model in ("generate", "edit", "templates"):
        arrays["STEPS"] = np.array([[1]], np.int32)
    return model, arrays, draw(QUEUES) | {"parameters": draw(PARAMETERS)}


@contextlib.contextmanager
def clients(server: Server) -> Iterator[list[tuple[Any, Any]]]:
    with (
        tritonclient.http.InferenceServerClient(f"localhost:{server.http_port}") as http,
        tritonclient.grpc.InferenceServerClient(f"localhost:{server.grpc_port}") as grpc,
    ):
        yield [(tritonclient.http, http), (tritonclient.grpc, grpc)]


def send(triton: Any, client: Any, model: str, arrays: dict[str, Array], **options: Any) -> str:
    """The status of an answer; empty for a good one."""
    inputs = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    try:
        client.infer(model, inputs, **options)
    except InferenceServerException as error:
        return f"{error.status()} {error.message()}"
    return ""


def test_any_request_is_answered_and_harms_nobody(server: Server, http_client: Client) -> None:
    def picture() -> bytes:
        return http_client.generate("a red circle", seed=1, steps=3).image.tobytes()

    (triton,) = [p for p in family_of(server) if "tritonserver" in p.name()]
    before, processes = picture(), set(model_processes(triton.pid))
    assert len(processes) > 10
    answered: list[str] = []

    with clients(server) as both:

        @settings(
            max_examples=160,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(requests(), st.booleans())
        def check(request: tuple[str, dict[str, Array], dict[str, Any]], grpc: bool) -> None:
            model, arrays, options = request
            answer = send(*both[grpc], model, arrays, **options)
            answered.append(answer)
            assert not answer or answer.split()[0] in BLAMES, answer

        check()
    reached = [answer for answer in answered if "; accepted: " in answer]
    assert answered.count("") > 5, "hardly any request was good"
    assert len(reached) > 50, "hardly any request came to our code"
    assert picture() == before
    assert processes <= set(model_processes(triton.pid))
