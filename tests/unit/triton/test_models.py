"""The Triton models around fake engines, with the small fake of Triton's backend module."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tessera.manifest import Graph
from tessera.shared.board import Board
from tessera.templates.storage import Storage
from tessera.templates.store import Key, Recording, Store
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.engine import FakeEngine, text_engine, unet_engines, vae_encoder_engine, vae_engine
from tests.unit.denoise.test_sampler import DEMO
from tests.unit.requests.test_request import MANIFEST, inputs


class FakeBundle:
    """A bundle without files."""

    manifest = MANIFEST
    scheduler_config = DEMO
    threads = 1

    def __init__(self) -> None:
        encoder, decoder = unet_engines()
        self.engines = {
            "text_encoder": text_engine(),
            "unet_encoder": encoder,
            "unet_decoder": decoder,
            "vae_encoder": vae_encoder_engine(),
            "vae_decoder": vae_engine(),
        }

    def tokenizer(self, folder: str) -> Path:
        return Path(folder)

    def engine(self, name: str) -> FakeEngine:
        return self.engines[name]


class FakeTokenizer:
    """Token ids are character codes."""

    model_max_length = 16

    def __call__(self, text: str | list[str], **options: object) -> SimpleNamespace:
        if isinstance(text, str):
            return SimpleNamespace(input_ids=[ord(c) for c in text])
        rows = [[ord(c) for c in t[:16].ljust(16)] for t in text]
        return SimpleNamespace(input_ids=torch.tensor(rows))


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """encode, render, denoise, decode, jobs as Triton would load them; BLS reaches denoise."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
    monkeypatch.setenv("TESSERA_BUNDLE", str(tmp_path / "bundle"))
    monkeypatch.setenv("TESSERA_BOARD", str(tmp_path / "board"))
    monkeypatch.setenv("TESSERA_TEMPLATES", str(tmp_path / "templates"))
    for name in [n for n in list(sys.modules) if n.startswith("tessera.triton")]:
        monkeypatch.delitem(sys.modules, name)
    from transformers import AutoTokenizer

    from tessera.engines.bundle import Bundle

    bundle = FakeBundle()
    monkeypatch.setattr(Bundle, "of", classmethod(lambda cls, settings: bundle))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda path: FakeTokenizer())
    loaded: dict[str, Any] = {"bundle": bundle, "board": Board(tmp_path / "board")}
    for name in ("edit", "encode", "render", "denoise", "decode", "jobs", "templates"):
        loaded[name] = _load(name).TritonPythonModel()
        loaded[name].initialize({"model_config": json.dumps({"max_batch_size": 4})})
    monkeypatch.setattr(_load("denoise"), "BURST_S", 0.0)
    monkeypatch.setitem(pb_utils.BLS, "denoise", lambda arrays: run_to_end(loaded, arrays))
    for name in ("encode", "render", "decode", "templates"):
        monkeypatch.setitem(pb_utils.BLS, name, partial(call, loaded[name]))
    yield loaded
    for name in [n for n in list(sys.modules) if n.startswith("tessera.triton")]:
        del sys.modules[name]


def _load(name: str) -> ModuleType:
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


def test_a_request_through_all_models(models: dict[str, Any]) -> None:
    arrays = encoded(models, JOB_ID="j", STEPS=3, SEED=5, WIDTH=96)
    assert arrays["TEXT"].shape == (1, 2, 16, 8)
    assert phase(models, "j") == "queued"
    rendered = models["render"].execute([pb_utils.Request(**arrays)])[0].arrays()
    assert rendered["LATENTS"].shape == (1, 4, 32, 24)
    assert phase(models, "j") == "decoding"
    request = pb_utils.Request(PLAN=arrays["PLAN"], **rendered)
    decoded = models["decode"].execute([request])[0].arrays()
    assert decoded["IMAGE"].shape == (1, 128, 96, 3)
    assert decoded["IMAGE"].dtype == np.uint8
    info = json.loads(decoded["INFO"][0, 0])
    assert (info["job_id"], info["seed"], info["ticks"], info["width"]) == ("j", 5, 3, 96)
    assert phase(models, "j") == "done"


def edit_inputs(strength: float = 1.0, **values: Any) -> dict[str, Any]:
    image = np.random.default_rng(1).integers(0, 256, (1, 96, 64, 3), np.uint8)
    mask = np.zeros((1, 96, 64), np.uint8)
    mask[0, 16:48, 16:40] = 255
    strengths = np.array([[strength]], np.float32)
    return {**inputs(**values), "IMAGE": image, "MASK": mask, "STRENGTH": strengths}


def test_an_edit_through_all_models(models: dict[str, Any]) -> None:
    given = edit_inputs(JOB_ID="j", STEPS=8, SEED=5, strength=0.5)
    decoded = models["edit"].execute([pb_utils.Request(**given)])[0].arrays()
    assert models["board"].status("j").total == 4
    assert phase(models, "j") == "done"
    outside = given["MASK"] < 128
    assert (decoded["IMAGE"][outside] == given["IMAGE"][outside]).all()
    assert (decoded["IMAGE"] != given["IMAGE"]).any()
    info = json.loads(decoded["INFO"][0, 0])
    assert (info["mode"], info["ticks"], info["steps"]) == ("dense", 4, 8)
    assert info["mask_ratio"] == 0.125
    assert info["template"]


def test_errors_keep_their_status_on_the_way_through_edit(models: dict[str, Any]) -> None:
    given = edit_inputs(JOB_ID="j")
    given["MASK"] = np.zeros_like(given["MASK"])
    sentence, code = message(models["edit"].execute([pb_utils.Request(**given)])[0])
    assert sentence.startswith("MASK has no pixel of 128 or more; accepted")
    assert code == pb_utils.TritonError.INVALID_ARG
    given = edit_inputs(JOB_ID="j")
    models["board"].open("j", 1)
    assert message(models["edit"].execute([pb_utils.Request(**given)])[0])[1] == code

    def explode(inputs: Any) -> dict[str, torch.Tensor]:
        raise RuntimeError("out of memory")

    models["bundle"].engines["vae_decoder"]._run = explode
    sentence, code = message(
        models["edit"].execute([pb_utils.Request(**edit_inputs(JOB_ID="k"))])[0]
    )
    assert sentence.startswith("internal error")
    assert code == pb_utils.TritonError.INTERNAL
    assert phase(models, "k") == "failed"


def test_an_edits_timeout_counts_in_the_queue_of_encode_too(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that the job is on the board, where its client can cancel it."""
    models["edit"].execute([pb_utils.Request(timeout=70, **edit_inputs())])
    assert pb_utils.TIMEOUTS["encode"] == 70
    assert {pb_utils.TIMEOUTS[name] for name in ("render", "denoise", "decode")} == {0}

    def expire(arrays: Any) -> pb_utils.InferenceResponse:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError("Request timeout expired"))

    monkeypatch.setitem(pb_utils.BLS, "encode", expire)
    response = models["edit"].execute([pb_utils.Request(**edit_inputs())])[0]
    assert message(response) == ("Request timeout expired", pb_utils.TritonError.UNAVAILABLE)


CONTROLS = [
    {"name": "edges", "scale": 0.5, "end": 0.8, "preprocess": "canny"},
    {"name": "depth", "resize": "fit"},
]


def control_inputs(height: int, width: int) -> dict[str, Any]:
    """What names two ControlNets, and their images."""
    images = np.random.default_rng(2).integers(0, 256, (1, 2, height, width, 3), np.uint8)
    text = np.array([[json.dumps(CONTROLS).encode()]], object)
    return {"CONTROLS": text, "CONTROL_IMAGES": images}


@pytest.fixture
def rendered(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `render` is given; it does not denoise. The bundle has two ControlNets."""
    graphs = {f"controlnet_{name}": Graph("a.onnx", "c.json") for name in ("edges", "depth")}
    manifest = dataclasses.replace(MANIFEST, graphs=graphs)
    monkeypatch.setattr(models["encode"], "_manifest", manifest)
    given: list[dict[str, Any]] = []

    def render(arrays: dict[str, Any]) -> pb_utils.InferenceResponse:
        given.append(arrays)
        plan = json.loads(arrays["PLAN"][0, 0])
        latents = np.zeros((1, 4, plan["height"] // 4, plan["width"] // 4), np.float32)
        stats = np.array([[b'{"engine_ms": 0.0}']], object)
        tensors = {"LATENTS": latents, "STATS": stats}
        return pb_utils.InferenceResponse([pb_utils.Tensor(*item) for item in tensors.items()])

    monkeypatch.setitem(pb_utils.BLS, "render", render)
    return given


def test_the_images_of_controlnets_reach_render_as_their_networks_take_them(
    models: dict[str, Any], rendered: list[dict[str, Any]]
) -> None:
    given = edit_inputs(JOB_ID="j") | control_inputs(96, 64)
    response = models["edit"].execute([pb_utils.Request(**given)])[0]
    assert response.error is None, response.error
    ((edges, depth),) = rendered[0]["CONTROL"]
    assert edges.shape == depth.shape == (96, 64, 3)
    assert set(np.unique(edges)) == {0, 255}
    assert (depth == given["CONTROL_IMAGES"][0, 1]).all()
    plan = json.loads(rendered[0]["PLAN"][0, 0])
    assert plan["controls"] == [
        {"name": "edges", "scale": 0.5, "start": 0.0, "end": 0.8},
        {"name": "depth", "scale": 1.0, "start": 0.0, "end": 1.0},
    ]
    done = [{"preprocess": "canny", "low": 100.0, "high": 200.0}, {"resize": "fit"}]
    info = json.loads(response.arrays()["INFO"][0, 0])
    assert info["controls"] == [a | b for a, b in zip(plan["controls"], done, strict=True)]


@pytest.mark.usefixtures("rendered")
def test_every_request_has_a_tensor_for_controlnets(models: dict[str, Any]) -> None:
    given = inputs(STEPS=2, WIDTH=96) | control_inputs(128, 96)
    with_controls = models["encode"].execute([pb_utils.Request(**given)])[0].arrays()
    without = encoded(models, STEPS=2)
    assert with_controls["CONTROL"].shape == (1, 2, 128, 96, 3)
    assert without["CONTROL"].shape == (1, 1, 1, 1, 3)
    assert set(with_controls) == set(without)
    assert with_controls["CONTROL"].dtype == without["CONTROL"].dtype == np.uint8


@pytest.fixture
def sparse_models(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> dict[str, Any]:
    """Models of a bundle that has the graphs of sparse edits; `recorder` makes recordings."""
    graph = Graph("a.onnx", "config.json")
    manifest = dataclasses.replace(MANIFEST, graphs={"unet_sparse": graph, "unet_text": graph})
    for name in ("encode", "templates"):
        monkeypatch.setattr(models[name], "_manifest", manifest)
    recorder = FakeRecorder(models["templates"]._store)
    monkeypatch.setattr(models["templates"], "_recorder", recorder)
    return models | {"recorder": recorder, "digest": manifest.digest}


class FakeRecorder:
    """Records nothing but the keys it is asked for."""

    def __init__(self, store: Store) -> None:
        self._store, self.keys = store, list[Key]()

    def ensure(self, key: Key) -> tuple[Recording, bool]:
        self.keys.append(key)
        return self._store.record(key, Storage("float32"), [(0, {})]), True

    def attempt(self, key: Key, *, between: Callable[[], None]) -> bool:
        with self._store.locked(key, wait=False) as held:
            if held:
                self.ensure(key)
            return held


def test_a_sparse_edit_waits_for_its_recording(sparse_models: dict[str, Any]) -> None:
    given = edit_inputs(STEPS=4, MODE="sparse", SCHEDULER="ddim")
    for count in (1, 1):  # the second finds what the first had made
        response = sparse_models["edit"].execute([pb_utils.Request(**given)])[0]
        assert response.error is None, response.error
        assert len(sparse_models["recorder"].keys) == count
    (key,) = sparse_models["recorder"].keys
    assert (key.steps, key.scheduler, key.bundle) == (4, "ddim", sparse_models["digest"])


def to_record(models: dict[str, Any], job_id: str) -> dict[str, Any]:
    """Inputs of `render` for an edit whose template has not been recorded."""
    given = edit_inputs(STEPS=4, MODE="sparse", JOB_ID=job_id)
    arrays = models["encode"].execute([pb_utils.Request(**given)])[0].arrays()
    del arrays["PIXELS"]
    return dict(arrays)


def test_cancelling_an_edit_does_not_wait_for_its_recording(
    sparse_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = to_record(sparse_models, "j")
    begun, going_on, recorded = threading.Event(), threading.Event(), threading.Event()

    def record(arrays: dict[str, Any]) -> pb_utils.InferenceResponse:
        begun.set()
        assert going_on.wait(30)
        recorded.set()
        return pb_utils.InferenceResponse([pb_utils.Tensor("RESULT", np.array([[b"{}"]], object))])

    monkeypatch.setitem(pb_utils.BLS, "templates", record)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(sparse_models["render"].execute, [pb_utils.Request(**arrays)])
        assert begun.wait(30)
        sparse_models["board"].cancel("j")
        (response,) = answer.result(30)
    assert message(response) == ("job j was cancelled", pb_utils.TritonError.CANCELLED)
    assert phase(sparse_models, "j") == "cancelled"
    going_on.set()
    assert recorded.wait(30)  # somebody else may wait for it


def test_a_recording_whose_edit_was_cancelled_is_not_begun(sparse_models: dict[str, Any]) -> None:
    template = sparse_models["templates"]._store.keep(edit_inputs()["IMAGE"][0])
    given = inputs(ACTION="register", TEMPLATE=template)
    del given["PROMPT"]
    for job in ("goes on", "cancelled"):
        sparse_models["board"].open(job, 1)
    sparse_models["board"].cancel("cancelled")
    responses = [
        sparse_models["templates"].execute([pb_utils.Request(parameters={"job_id": j}, **given)])[0]
        for j in ("cancelled", "goes on")
    ]
    code = pb_utils.TritonError.CANCELLED
    assert message(responses[0]) == ("job cancelled was cancelled", code)
    assert responses[1].error is None
    assert len(sparse_models["recorder"].keys) == 1


def test_an_edit_is_told_why_its_template_was_not_recorded(
    sparse_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = pb_utils.TritonError("[UNAVAILABLE] the disk is full")
    answer = pb_utils.InferenceResponse(error=error)
    monkeypatch.setitem(pb_utils.BLS, "templates", lambda arrays: answer)
    request = pb_utils.Request(**to_record(sparse_models, "j"))
    response = sparse_models["render"].execute([request])[0]
    assert message(response) == ("the disk is full", pb_utils.TritonError.UNAVAILABLE)
    assert phase(sparse_models, "j") == "failed"


def test_an_automatic_edit_asks_for_a_recording_and_does_not_wait(
    sparse_models: dict[str, Any],
) -> None:
    response = sparse_models["edit"].execute([pb_utils.Request(**edit_inputs(STEPS=4))])[0]
    template = json.loads(response.arrays()["INFO"][0, 0])["template"]
    store = sparse_models["templates"]._store
    assert not sparse_models["recorder"].keys
    assert [k.template for k in store.wanted(sparse_models["digest"])] == [template]
    again = edit_inputs(STEPS=4, TEMPLATE=template)
    image = again.pop("IMAGE")
    found = sparse_models["edit"].execute([pb_utils.Request(**again)])[0].arrays()
    outside = again["MASK"] < 128
    assert (found["IMAGE"][outside] == image[outside]).all()


class TestIdle:
    """What the `templates` model records when nobody waits."""

    def want(self, models: dict[str, Any]) -> Key:
        """The key that an automatic edit has found missing."""
        models["edit"].execute([pb_utils.Request(**edit_inputs(STEPS=4))])
        (key,) = models["templates"]._store.wanted(models["digest"])
        return key

    def test_is_left_to_the_other_process_that_records_it(
        self, sparse_models: dict[str, Any]
    ) -> None:
        templates, key = sparse_models["templates"], self.want(sparse_models)
        other = Store(templates._store.root, budget=10**9)
        with other.locked(key), ThreadPoolExecutor(1) as pool:
            pool.submit(templates._record_wanted).result(30)
            given = edit_inputs(ACTION="register", STEPS=7)
            register = {k: given[k] for k in ("ACTION", "STEPS", "IMAGE")}
            request = pb_utils.Request(**register)
            (response,) = pool.submit(templates.execute, [request]).result(30)
            assert response.error is None
        assert [k.steps for k in sparse_models["recorder"].keys] == [7]
        assert other.wanted(sparse_models["digest"]) == [key]
        templates._record_wanted()
        assert [k.steps for k in sparse_models["recorder"].keys] == [7, 4]
        assert not other.wanted(sparse_models["digest"])

    def test_does_not_queue_behind_a_registration(self, sparse_models: dict[str, Any]) -> None:
        templates, key = sparse_models["templates"], self.want(sparse_models)
        with templates._busy, ThreadPoolExecutor(1) as pool:
            pool.submit(templates._record_wanted).result(30)
        assert templates._store.wanted(sparse_models["digest"]) == [key]

    def test_goes_on_after_an_error(
        self, sparse_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        templates, key = sparse_models["templates"], self.want(sparse_models)
        module = _load("templates")
        for name in ("IDLE_S", "AFTER_ERROR_S"):
            monkeypatch.setattr(module, name, 0.01)
        wanted, errors = templates._store.wanted, iter([OSError(24, "Too many open files")])

        def failing(bundle: str) -> list[Key]:
            for error in errors:
                raise error
            return list(wanted(bundle))

        monkeypatch.setattr(templates._store, "wanted", failing)
        templates._thread.start()
        end = time.monotonic() + 30
        while wanted(sparse_models["digest"]):
            assert time.monotonic() < end, "the thread has ended"
            time.sleep(0.01)
        templates.finalize()
        templates._thread.join(30)
        assert sparse_models["recorder"].keys == [key]
        assert any("Too many open files" in line for line in pb_utils.Logger.lines)


def test_a_dense_edit_leaves_nothing_behind(sparse_models: dict[str, Any]) -> None:
    sparse_models["edit"].execute([pb_utils.Request(**edit_inputs(STEPS=2, MODE="dense"))])
    store = sparse_models["templates"]._store
    assert store.pictures.known() == store.wanted(sparse_models["digest"]) == []


def test_templates_are_registered_listed_and_evicted(sparse_models: dict[str, Any]) -> None:
    def ask(**values: Any) -> dict[str, Any]:
        given = inputs(**{k: v for k, v in values.items() if k != "IMAGE"})
        del given["PROMPT"]
        given |= {k: v for k, v in values.items() if k == "IMAGE"}
        response = sparse_models["templates"].execute([pb_utils.Request(**given)])[0]
        if response.error is not None:
            return {"error": response.error.message()}
        answer: dict[str, Any] = json.loads(response.arrays()["RESULT"][0, 0])
        return answer

    assert ask(ACTION="list")["templates"] == []
    image = edit_inputs()["IMAGE"]
    made = ask(ACTION="register", IMAGE=image, STEPS=7)
    assert (made["steps"], made["scheduler"], made["recorded"]) == (7, "euler", True)
    (listed,) = ask(ACTION="list")["templates"]
    assert (listed["template"], listed["width"], listed["height"]) == (made["template"], 64, 96)
    assert [r["steps"] for r in listed["recordings"]] == [7]
    assert ask(ACTION="evict", TEMPLATE="x")["error"].startswith(
        "TEMPLATE is 'x'; accepted: a known"
    )
    assert ask(ACTION="evict", TEMPLATE=made["template"])["bytes"] == made["bytes"]
    assert ask(ACTION="list")["templates"] == []
    assert ask(ACTION="register")["error"].startswith("IMAGE is missing, and so is TEMPLATE")
    assert ask(ACTION="frame")["error"] == "ACTION is 'frame'; accepted: register, list, evict"
    small = image[:, :8]
    assert ask(ACTION="register", IMAGE=small)["error"].startswith("IMAGE has 64 x 8 pixels")


def test_a_bundle_without_the_graphs_cannot_register(models: dict[str, Any]) -> None:
    given = {**inputs(ACTION="register"), "IMAGE": edit_inputs()["IMAGE"]}
    del given["PROMPT"]
    sentence, code = message(models["templates"].execute([pb_utils.Request(**given)])[0])
    assert sentence.startswith("ACTION is 'register'; accepted: list, evict, since the bundle has")
    assert code == pb_utils.TritonError.INVALID_ARG


def test_edits_and_generations_share_a_tick(models: dict[str, Any]) -> None:
    edit = models["encode"].execute([pb_utils.Request(**edit_inputs(STEPS=9))])[0].arrays()
    del edit["PIXELS"]
    requests = [
        pb_utils.Request(1, True, **edit, QUEUED_TICK=np.array([[0]])),
        sequence(models, 2, STEPS=9, WIDTH=64, HEIGHT=96),
    ]
    assert {frozenset(t.name() for t in r.inputs()) for r in requests} == {
        frozenset(("PLAN", "TEXT", "POOLED", "CLEAN", "ACTIVE", "CONTROL", "QUEUED_TICK"))
    }
    assert models["denoise"].execute(requests) == [None, None]
    assert models["bundle"].engines["unet_encoder"].batches == [4]


def test_without_guidance_there_is_one_branch(models: dict[str, Any]) -> None:
    assert encoded(models, GUIDANCE=1.0)["TEXT"].shape[1] == 1


def test_one_bad_request_does_not_touch_the_others(models: dict[str, Any]) -> None:
    requests = [pb_utils.Request(**inputs(STEPS=s)) for s in (3, 0, 4)]
    first, second, third = models["encode"].execute(requests)
    assert first.error is None
    assert third.error is None
    sentence, code = message(second)
    assert sentence.startswith("STEPS is 0; accepted")
    assert code == pb_utils.TritonError.INVALID_ARG
    assert models["board"].running() == 2


def test_an_unexpected_error_is_an_id_for_the_caller_and_a_trace_in_the_log(
    models: dict[str, Any],
) -> None:
    def explode(inputs: Any) -> dict[str, torch.Tensor]:
        raise ZeroDivisionError("secret detail")

    models["bundle"].engines["text_encoder"]._run = explode
    sentence, code = message(models["encode"].execute([pb_utils.Request(**inputs(JOB_ID="j"))])[0])
    assert code == pb_utils.TritonError.INTERNAL
    assert "secret" not in sentence
    identity = sentence.split()[2].rstrip(";")
    assert any(identity in line and "secret detail" in line for line in pb_utils.Logger.lines)
    assert phase(models, "j") == "failed"


def test_requests_in_one_tick_share_the_network_call(models: dict[str, Any]) -> None:
    requests = [sequence(models, i, STEPS=3, SEED=i) for i in range(3)]
    assert models["denoise"].execute(requests) == [None, None, None]
    assert models["bundle"].engines["unet_encoder"].batches == [6]
    assert {r.flags for r in requests} == {pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE}


def test_a_partial_batch_is_sent_back_to_regroup(models: dict[str, Any]) -> None:
    denoise = models["denoise"]
    requests = [sequence(models, i, STEPS=5) for i in range(3)]
    denoise.execute(requests)
    assert denoise.execute(requests[:1]) == [None]
    assert models["board"].tick == 1  # nothing was computed
    newcomer = sequence(models, 7, STEPS=5)
    assert denoise.execute([*requests, newcomer]) == [None] * 4
    assert models["board"].tick == 2
    assert models["bundle"].engines["unet_encoder"].batches == [6, 8]


def test_regrouping_gives_up_on_a_request_that_stays_away(models: dict[str, Any]) -> None:
    denoise = models["denoise"]
    requests = [sequence(models, i, STEPS=9) for i in range(2)]
    denoise.execute(requests)
    for _ in range(3):
        denoise.execute(requests[:1])
        assert models["board"].tick == 1
    denoise.execute(requests[:1])
    assert models["board"].tick == 2
    denoise.execute(requests[:1])  # it is not waited for again
    assert models["board"].tick == 3


def test_cancelled_jobs_leave_at_the_next_tick(models: dict[str, Any]) -> None:
    denoise = models["denoise"]
    stays, goes = (sequence(models, i, STEPS=9, JOB_ID=f"j{i}") for i in range(2))
    denoise.execute([stays, goes])
    result = (
        models["jobs"]
        .execute([pb_utils.Request(**inputs(ACTION="cancel", JOB_ID="j1"))])[0]
        .arrays()
    )
    assert json.loads(result["RESULT"][0, 0])["cancelled"]
    still, gone = denoise.execute([stays, goes])
    assert still is None
    sentence, code = message(gone)
    assert sentence == "[CANCELLED] job j1 was cancelled after 1 steps"
    assert code == pb_utils.TritonError.CANCELLED
    assert denoise.execute([stays]) == [None]
    assert models["bundle"].engines["unet_encoder"].batches == [4, 2, 2]


class TestBurst:
    """Several ticks in one call of `execute`, unless somebody has to be let in or out."""

    @pytest.fixture(autouse=True)
    def long_bursts(self, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_load("denoise"), "BURST_S", 100.0)

    def during_step(self, models: dict[str, Any], step: int, action: Callable[[], object]) -> None:
        """Have something happen while the network runs for the given time."""
        engine = models["bundle"].engines["unet_encoder"]
        plain = engine._run

        def run(tensors: Any) -> Any:
            if len(engine.batches) == step:
                action()
            return plain(tensors)

        engine._run = run

    def test_lasts_until_a_request_ends(self, models: dict[str, Any]) -> None:
        short, long = sequence(models, 1, STEPS=3), sequence(models, 2, STEPS=9)
        first, second = models["denoise"].execute([short, long])
        assert first.error is None
        assert second is None
        assert models["board"].tick == 3
        (last,) = models["denoise"].execute([long])
        assert json.loads(last.arrays()["STATS"][0, 0])["ticks"] == 9
        assert models["board"].tick == 9

    def test_stops_for_a_newcomer(self, models: dict[str, Any]) -> None:
        request = sequence(models, 1, STEPS=9)
        newcomers: list[Any] = []
        self.during_step(models, 4, lambda: newcomers.append(sequence(models, 2, STEPS=2)))
        assert models["denoise"].execute([request]) == [None]
        assert models["board"].tick == 4
        assert models["denoise"].execute([request]) == [None]  # it is still on its way
        assert models["board"].tick == 5
        still, done = models["denoise"].execute([request, *newcomers])
        assert still is None
        stats = json.loads(done.arrays()["STATS"][0, 0])
        assert (stats["first_tick"], stats["last_tick"]) == (6, 7)

    def test_does_not_stop_when_nobody_could_join(self, models: dict[str, Any]) -> None:
        requests = [sequence(models, i, STEPS=6) for i in range(4)]
        self.during_step(models, 2, lambda: sequence(models, 9))
        assert None not in models["denoise"].execute(requests)
        assert models["board"].tick == 6

    def test_stops_for_a_cancelled_job(self, models: dict[str, Any]) -> None:
        stays, goes = (sequence(models, i, STEPS=9, JOB_ID=f"j{i}") for i in range(2))
        self.during_step(models, 3, lambda: models["board"].cancel("j1"))
        still, gone = models["denoise"].execute([stays, goes])
        assert still is None
        assert message(gone)[0] == "[CANCELLED] job j1 was cancelled after 3 steps"
        assert models["bundle"].engines["unet_encoder"].batches == [4, 4, 4, 2]

    def test_progress_is_seen_from_outside(self, models: dict[str, Any]) -> None:
        seen: list[int] = []
        request = sequence(models, 1, STEPS=5, JOB_ID="j")
        self.during_step(models, 4, lambda: seen.append(models["board"].status("j").step))
        models["denoise"].execute([request])
        assert seen == [3]


def test_a_job_cancelled_while_queued_never_starts(models: dict[str, Any]) -> None:
    arrays = encoded(models, JOB_ID="j")
    models["board"].cancel("j")
    response = models["render"].execute([pb_utils.Request(**arrays)])[0]
    assert message(response)[1] == pb_utils.TritonError.CANCELLED
    assert phase(models, "j") == "cancelled"
    assert models["board"].tick == 0


def test_denoise_serves_only_what_is_on_the_board(models: dict[str, Any]) -> None:
    request = sequence(models, 1, JOB_ID="j")
    job = json.loads(request.inputs()[0].as_numpy()[0, 0])
    models["board"].close(job["slot"], job["ticket"], 4)
    sentence, code = message(models["denoise"].execute([request])[0])
    assert "not on the board" in sentence
    assert code == pb_utils.TritonError.UNAVAILABLE


def test_a_failing_step_fails_its_request_with_an_id(models: dict[str, Any]) -> None:
    def explode(inputs: Any) -> dict[str, torch.Tensor]:
        raise RuntimeError("out of memory")

    models["bundle"].engines["unet_decoder"]._run = explode
    arrays = encoded(models, JOB_ID="j")
    response = models["render"].execute([pb_utils.Request(**arrays)])[0]
    assert message(response)[0].startswith("internal error")
    assert phase(models, "j") == "failed"


def test_what_fails_for_a_tick_as_a_whole_is_told_to_its_requests(models: dict[str, Any]) -> None:
    denoise = models["denoise"]
    requests = [sequence(models, i, STEPS=50, JOB_ID=f"j{i}") for i in range(2)]
    works, denoise._adapters.tick = denoise._adapters.tick, lambda *a, **b: 1 / 0
    for response in denoise.execute(requests):
        assert "internal error" in message(response)[0]
    assert (phase(models, "j0"), phase(models, "j1")) == ("failed", "failed")  # without render
    denoise._adapters.tick = works
    assert denoise.execute([sequence(models, 2, STEPS=50, JOB_ID="j2")]) == [None]


def test_a_tick_may_take_longer_than_what_makes_a_request_vanish(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_load("denoise"), "VANISHED_S", 0.01)
    denoise = models["denoise"]
    request = sequence(models, 1, STEPS=2, JOB_ID="j")
    works = denoise._adapters.tick

    def slowly(*arguments: Any, **options: Any) -> None:
        time.sleep(0.05)
        works(*arguments, **options)

    denoise._adapters.tick = slowly
    assert denoise.execute([request]) == [None]
    assert denoise.execute([request])[0].error is None


def test_state_of_vanished_requests_is_collected(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    denoise = models["denoise"]
    lost, kept = (sequence(models, i, STEPS=50, JOB_ID=f"j{i}") for i in range(2))
    denoise.execute([lost, kept])
    monkeypatch.setattr(_load("denoise"), "MAX_REGROUPS", 0)
    denoise._seen[0] -= _load("denoise").VANISHED_S + 1
    denoise.execute([kept])
    assert list(denoise._running) == [1]
    assert (phase(models, "j0"), phase(models, "j1")) == ("failed", "denoising")


@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        (
            pb_utils.TritonError("Stub process 'denoise_0_0' is not healthy."),
            "the denoise model is being restarted; try again in a few seconds",
            pb_utils.TritonError.UNAVAILABLE,
        ),
        (
            pb_utils.TritonError("[request id: j] Exceeds maximum queue size"),
            "the queue of the denoise model is full; try again later",
            pb_utils.TritonError.UNAVAILABLE,
        ),
        (
            pb_utils.TritonError("[CANCELLED] job j was cancelled after 2 steps"),
            "job j was cancelled after 2 steps",
            pb_utils.TritonError.CANCELLED,
        ),
    ],
    ids=["dead process", "full queue", "cancelled"],
)
def test_render_passes_errors_on(
    models: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    error: pb_utils.TritonError,
    sentence: str,
    code: int,
) -> None:
    answer = pb_utils.InferenceResponse(error=error)
    monkeypatch.setattr(_load("denoise"), "BURST_S", 0.0)
    monkeypatch.setitem(pb_utils.BLS, "denoise", lambda arrays: answer)
    response = models["render"].execute([pb_utils.Request(**encoded(models, JOB_ID="j"))])[0]
    assert message(response) == (sentence, code)
    cancelled = code == pb_utils.TritonError.CANCELLED
    assert phase(models, "j") == ("cancelled" if cancelled else "failed")


@pytest.mark.parametrize(
    ("values", "sentence", "code"),
    [
        ({"ACTION": "stop"}, "ACTION is 'stop'", pb_utils.TritonError.INVALID_ARG),
        ({"ACTION": "status"}, "JOB_ID is 'nobody'", pb_utils.TritonError.NOT_FOUND),
    ],
    ids=["action", "job"],
)
def test_jobs_names_what_it_does_not_know(
    models: dict[str, Any], values: dict[str, str], sentence: str, code: int
) -> None:
    request = pb_utils.Request(**inputs(**values, JOB_ID="nobody"))
    text, status = message(models["jobs"].execute([request])[0])
    assert text.startswith(sentence)
    assert status == code
