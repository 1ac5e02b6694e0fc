"""The client around a fake transport, and how it reads the errors of the real ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from tessera.errors import (
    Cancelled,
    InternalError,
    InvalidInput,
    TesseraError,
    TimedOut,
    Unavailable,
    UnknownJob,
)
from tessera.types import Array
from tessera_client import AsyncClient, Client, Control, Lora, aio, cli, client
from tessera_client.aio_transport import AsyncHttpTransport
from tessera_client.messages import JobStatus, generate_call, job_call
from tessera_client.wire import Call, received, split_url
from tests.fakes.transport import AsyncFakeTransport, FakeTransport

run = CliRunner()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (client, aio):
        monkeypatch.setattr(module, "RETRY_S", 0.0)
        monkeypatch.setattr(module, "POLL_S", 0.01)


def test_only_what_is_given_is_sent() -> None:
    transport = FakeTransport()
    with Client(transport=transport) as opened:
        result = opened.generate("a circle", seed=0, guidance=None)
    assert transport.closed
    (sent,) = transport.sent("generate")
    assert set(sent) == {"PROMPT", "SEED", "JOB_ID"}
    assert (sent["PROMPT"], sent["SEED"]) == (b"a circle", 0)
    assert result.image.size == (8, 4)
    assert result.info.seed == 7
    assert result.info.raw["news_of_a_later_server"] == 1


def test_types_and_shapes_on_the_wire() -> None:
    picture = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    arrays = generate_call(
        "é",
        "j",
        {
            "steps": 3,
            "guidance": 2.5,
            "loras": [Lora("a", 0.5), Lora("b", text_weight=0.1)],
            "controls": [
                Control("edges", picture, end=0.5),
                Control("depth", Image.fromarray(picture), preprocess="canny", low=5.0),
            ],
        },
    ).inputs
    assert arrays["PROMPT"][0, 0] == "é".encode()
    assert arrays["STEPS"].dtype == np.int32
    assert arrays["GUIDANCE"].dtype == np.float32
    assert (arrays["CONTROL_IMAGES"] == np.stack([picture, picture])[None]).all()
    assert arrays["CONTROL_IMAGES"].dtype == np.uint8
    assert json.loads(arrays["LORAS"][0, 0]) == [
        {"name": "a", "weight": 0.5},
        {"name": "b", "weight": 1.0, "text_weight": 0.1},
    ]
    window = {"scale": 1.0, "start": 0.0}
    assert json.loads(arrays["CONTROLS"][0, 0]) == [
        {"name": "edges", **window, "end": 0.5},
        {"name": "depth", **window, "end": 1.0, "preprocess": "canny", "low": 5.0},
    ]
    assert {a.shape[0] for a in arrays.values()} == {1}


def test_without_controlnets_nothing_is_sent_of_them() -> None:
    assert set(generate_call("a", "j", {"controls": []}).inputs) == {"PROMPT", "JOB_ID"}


@pytest.mark.parametrize(
    ("images", "kind", "sentence"),
    [
        ([(64, 48), (32, 48), (64, 48)], ValueError, "these have 48 x 32 and 48 x 64 pixels"),
        ([(64, 48, 1)], TypeError, r"an image is an array .* not \(64, 48, 1, 3\)"),
    ],
    ids=["sizes", "shape"],
)
def test_images_of_controlnets_that_cannot_be_sent(
    images: list[tuple[int, ...]], kind: type[Exception], sentence: str
) -> None:
    controls = [Control("edges", np.zeros((*size, 3), np.uint8)) for size in images]
    with pytest.raises(kind, match=sentence):
        generate_call("a", "j", {"controls": controls})


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="unknown option 'stepz'; known: negative_prompt, seed"):
        Client(transport=FakeTransport()).generate("a", stepz=3)  # type: ignore[call-arg]


class TestEdit:
    """What `edit` sends."""

    IMAGE = np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3)

    def sent(self, image: Any, mask: Any, **options: Any) -> dict[str, Any]:
        transport = FakeTransport()
        Client(transport=transport).edit(image, mask, "a", **options)
        (sent,) = transport.sent("edit")
        return sent

    def test_an_image_and_a_mask(self) -> None:
        mask = np.eye(8, 16, dtype=np.uint8) * 200
        sent = self.sent(self.IMAGE, mask, strength=0.5, mode="dense", seed=0)
        assert (sent["IMAGE"] == self.IMAGE[None]).all()
        assert (sent["MASK"] == mask[None]).all()
        assert (sent["STRENGTH"], sent["MODE"], sent["SEED"]) == (0.5, b"dense", 0)
        assert sent["STRENGTH"].dtype == np.float32
        again = self.sent(Image.fromarray(self.IMAGE), Image.fromarray(mask))
        assert (again["MASK"] == mask[None]).all()
        assert (again["IMAGE"] == self.IMAGE[None]).all()
        assert "STRENGTH" not in again

    def test_a_boolean_mask_a_rectangle_and_transparency(self) -> None:
        wanted = np.zeros((8, 16), np.uint8)
        wanted[2:5, 3:10] = 255
        picture = Image.fromarray(np.dstack([self.IMAGE, 255 - wanted]))
        for image, mask in (
            (self.IMAGE, wanted > 0),
            (self.IMAGE, (3, 2, 7, 3)),
            (picture, (3, 2, 7, 3)),
            (picture, None),
            (np.asarray(picture), None),
        ):
            assert (self.sent(image, mask)["MASK"] == wanted[None]).all()

    @pytest.mark.parametrize(
        ("image", "mask", "sentence"),
        [
            (IMAGE, None, "no mask, and the image has no transparent part"),
            (IMAGE, (9, 0, 8, 8), "9,0,8,8 is not within the image of 16 x 8 pixels"),
            (IMAGE, (0, 0, 0, 8), "is not within"),
            (None, (0, 0, 8, 8), "a rectangle as mask needs the image"),
            (IMAGE, IMAGE, r"array \(h, w\) of uint8 or bool, not \(8, 16, 3\) of uint8"),
            (IMAGE.astype(float), IMAGE[..., 0], "an image is an array .* of float64"),
        ],
        ids=["none", "outside", "empty", "no image", "three channels", "floats"],
    )
    def test_what_cannot_be_sent(self, image: Any, mask: Any, sentence: str) -> None:
        with pytest.raises((TypeError, ValueError), match=sentence):
            self.sent(image, mask)

    def test_the_async_client_sends_the_same(self) -> None:
        async def session() -> None:
            transport = AsyncFakeTransport()
            async with AsyncClient(transport=transport) as opened:
                await opened.edit(self.IMAGE, (0, 0, 8, 8), "a", mode="dense")
            assert transport.inner.sent("edit")[0]["MODE"] == b"dense"

        asyncio.run(session())


def test_templates_are_recorded_listed_and_evicted() -> None:
    transport = FakeTransport()
    image = np.zeros((8, 16, 3), np.uint8)
    with Client(transport=transport) as opened:
        assert opened.register_template(image, steps=4).bytes == 5_000_000
        assert opened.templates()["disk"]["budget"] == 10_000_000
        assert opened.evict_template("abc") == 7
    register, listing, evict = transport.sent("templates")
    assert set(register) == {"ACTION", "IMAGE", "STEPS"}
    assert register["STEPS"] == 4
    assert listing == {"ACTION": b"list"}
    assert evict == {"ACTION": b"evict", "TEMPLATE": b"abc"}


def test_the_async_client_knows_templates() -> None:
    async def session() -> None:
        async with AsyncClient(transport=AsyncFakeTransport()) as opened:
            assert (await opened.register_template(template="abc")).recorded
            assert len((await opened.templates())["templates"]) == 2
            assert await opened.evict_template("abc") == 7

    asyncio.run(session())


def test_the_adapters_of_a_server() -> None:
    with Client(transport=FakeTransport()) as opened:
        ink, torn = opened.adapters()
    assert (ink.name, ink.ranks, ink.targets["unet"], ink.problem) == ("ink", (4, 8), 20, None)
    assert (torn.ranks, torn.problem) == (None, "is damaged or ends early")

    async def session() -> None:
        async with AsyncClient(transport=AsyncFakeTransport()) as opened:
            assert await opened.adapters() == [ink, torn]

    asyncio.run(session())


def test_the_policy_of_loras_is_a_request_parameter() -> None:
    transport = FakeTransport()
    with Client(transport=transport) as opened:
        opened.generate("a", loras=[Lora("ink", 0.5)], lora_policy="bounded")
        opened.generate("a")
    (first, second) = transport.parameters
    assert (first, second) == ({"lora_policy": "bounded"}, {})
    assert json.loads(transport.sent("generate")[0]["LORAS"]) == [{"name": "ink", "weight": 0.5}]


def test_retries_what_had_no_effect() -> None:
    transport = FakeTransport(Unavailable("busy"), Unavailable("busy"))
    Client(transport=transport, retries=2).generate("a", job_id="j")
    assert [c["JOB_ID"] for c in transport.sent("generate")] == [b"j"] * 3
    assert [name for name, _ in transport.calls] == ["generate", "jobs"] * 2 + ["generate"]
    assert transport.sent("jobs") == [{"ACTION": b"cancel", "JOB_ID": b"j"}] * 2


@pytest.mark.parametrize(
    "failure",
    [
        Unavailable("connection lost", undone=False),
        InvalidInput("STEPS", 0, "more"),
        InternalError("internal error 1"),
        Cancelled("cancelled"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_does_not_retry_the_rest(failure: TesseraError) -> None:
    transport = FakeTransport(failure)
    with pytest.raises(type(failure)) as caught:
        Client(transport=transport).generate("a")
    assert caught.value is failure
    assert len(transport.sent("generate")) == 1
    assert not transport.sent("jobs")


def test_gives_up_after_the_retries() -> None:
    transport = FakeTransport(*[Unavailable("busy")] * 9)
    with pytest.raises(Unavailable, match="busy"):
        Client(transport=transport, retries=3).generate("a")
    assert len(transport.sent("generate")) == 4


@pytest.mark.parametrize("reason", [TimedOut("late"), KeyboardInterrupt()], ids=["timeout", "^C"])
def test_a_caller_who_stops_waiting_cancels_the_job(reason: BaseException) -> None:
    transport = FakeTransport(reason)
    with pytest.raises(type(reason)):
        Client(transport=transport).generate("a", job_id="mine")
    assert transport.sent("jobs") == [{"ACTION": b"cancel", "JOB_ID": b"mine"}]


@pytest.mark.parametrize(
    ("within", "questions"), [(60.0, 4), (0.0, 1)], ids=["on its way", "too late"]
)
def test_a_job_that_is_on_its_way_is_cancelled_when_it_comes(
    monkeypatch: pytest.MonkeyPatch, within: float, questions: int
) -> None:
    for module in (client, aio):
        monkeypatch.setattr(module, "COMES_WITHIN_S", within)
    transport = FakeTransport(TimedOut("late"), unknown=3)
    with pytest.raises(TimedOut):
        Client(transport=transport).generate("a", job_id="mine")
    assert transport.sent("jobs") == [{"ACTION": b"cancel", "JOB_ID": b"mine"}] * questions

    async def session() -> None:
        transport = AsyncFakeTransport(TimedOut("late"), unknown=3)
        with pytest.raises(TimedOut):
            await AsyncClient(transport=transport).generate("a", job_id="mine")
        assert len(transport.inner.sent("jobs")) == questions

    asyncio.run(session())


def test_a_job_is_not_waited_for_before_its_request_is_sent_again() -> None:
    transport = FakeTransport(Unavailable("busy"), unknown=9)
    Client(transport=transport).generate("a")
    assert len(transport.sent("jobs")) == 1

    async def session() -> None:
        transport = AsyncFakeTransport(Unavailable("busy"), unknown=9)
        await AsyncClient(transport=transport).generate("a")
        assert len(transport.inner.sent("jobs")) == 1

    asyncio.run(session())


def test_progress_is_reported_while_the_job_runs() -> None:
    seen: list[Any] = []
    transport = FakeTransport(during=lambda: _until(lambda: len(seen) >= 3))
    Client(transport=transport).generate("a", on_progress=seen.append)
    assert seen[0].phase == "denoising"
    assert (seen[0].step, seen[0].total) == (1, 2)
    count = len(seen)
    time.sleep(0.05)
    assert len(seen) == count


def _until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)


def test_health_names_what_is_not_ready() -> None:
    health = Client(transport=FakeTransport()).health()
    assert health.server
    assert not health.ready
    assert [m for m, ready in health.models.items() if not ready] == ["templates"]


def test_the_async_client_does_the_same() -> None:
    async def session() -> None:
        transport = AsyncFakeTransport(Unavailable("busy"))
        async with AsyncClient(transport=transport) as opened:
            result = await opened.generate("a", seed=3, on_progress=lambda s: None)
            assert result.info.seed == 7
            assert (await opened.status("j")).step == 1
            assert (await opened.cancel("j")).total == 2
            assert not (await opened.health()).ready
        assert transport.inner.closed
        assert len(transport.inner.sent("generate")) == 2

    asyncio.run(session())


class Slow(AsyncFakeTransport):
    """Draws long enough for a question or two about progress."""

    async def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        if call.model == "generate":
            await asyncio.sleep(0.3)
        return await super().infer(call, timeout)


class CancelLosing(AsyncFakeTransport):
    """Answers questions for a job's status when cancelled, as `asyncio.wait_for` did at times."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def infer(self, call: Call, timeout: float) -> dict[str, Array]:
        if call.model == "jobs":
            self.asked.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        else:
            await self.asked.wait()
        return await super().infer(call, timeout)


def test_progress_ends_with_its_job_though_a_cancellation_is_lost() -> None:
    async def session() -> None:
        client = AsyncClient(transport=CancelLosing())
        seen: list[JobStatus] = []
        async with asyncio.timeout(10):
            result = await client.generate("a", on_progress=seen.append)
        assert result.info.seed == 7
        count = len(seen)
        assert count == 1, "the one question that was under way"
        await asyncio.sleep(0.3)
        assert len(seen) == count, "it goes on asking"

    asyncio.run(session())


def test_an_error_in_on_progress_is_raised_by_the_async_client() -> None:
    def report(status: JobStatus) -> None:
        raise LookupError(status.phase)

    async def session() -> None:
        with pytest.raises(LookupError, match="denoising"):
            await AsyncClient(transport=Slow()).generate("a", on_progress=report)

    asyncio.run(session())


class AnswerLater:
    """Stands in for tritonclient: answers when told to."""

    def __init__(self) -> None:
        self.answer = asyncio.get_running_loop().create_future()

    async def infer(self, **arguments: Any) -> Any:
        return await self.answer

    async def is_server_ready(self) -> Any:
        return await self.answer


@pytest.mark.parametrize("later", range(4), ids=lambda n: f"{n} turns of the loop later")
@pytest.mark.parametrize(
    "ask",
    [lambda t: t.infer(job_call("status", "j"), 5.0), lambda t: t.ready()],
    ids=["infer", "ready"],
)
def test_a_cancellation_that_comes_with_the_answer_is_not_lost(
    ask: Callable[[AsyncHttpTransport], Awaitable[Any]], later: int
) -> None:
    async def session() -> None:
        transport = AsyncHttpTransport("localhost:1")
        transport._opened = triton = AnswerLater()
        task = asyncio.ensure_future(ask(transport))
        await asyncio.sleep(0.01)
        triton.answer.set_result(InferResult)
        for _ in range(later):
            await asyncio.sleep(0)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert later  # it was done before
            assert await task

    asyncio.run(session())


class InferResult:
    """An answer of tritonclient."""

    @staticmethod
    def as_numpy(name: str) -> Array:
        return np.zeros(1)


def test_cancelling_the_task_cancels_the_job() -> None:
    async def session() -> None:
        transport = AsyncFakeTransport(asyncio.CancelledError())
        with pytest.raises(asyncio.CancelledError):
            await AsyncClient(transport=transport).generate("a", job_id="mine")
        assert transport.inner.sent("jobs") == [{"ACTION": b"cancel", "JOB_ID": b"mine"}]

    asyncio.run(session())


def triton_error(message: str, status: str) -> InferenceServerException:
    return InferenceServerException(msg=message, status=status)


STEPS = "STEPS is 0; accepted: 1"
JOB = "JOB_ID is 'x'; accepted: y"
LATE = "no answer from host:1 within 9 s"
RESTARTING = (
    "a model is being restarted; try again in a few seconds (Stub process 'x' is not healthy.)"
)
EXPIRED = "Request timeout expired"
QUEUED = "the request waited in a queue of the server for longer than its timeout"
REFUSED = "no server answers at host:1: refused"


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (triton_error(f"in ensemble 'generate', {STEPS}", "400"), InvalidInput, STEPS),
        (triton_error(STEPS, "StatusCode.INVALID_ARGUMENT"), InvalidInput, STEPS),
        (triton_error(JOB, "404"), UnknownJob, JOB),
        (triton_error("job x was cancelled", "400"), Cancelled, "job x was cancelled"),
        (triton_error("cancelled", "StatusCode.CANCELLED"), Cancelled, "cancelled"),
        (triton_error("try again", "503"), Unavailable, "try again"),
        (triton_error("in ensemble 'generate', " + EXPIRED, "503"), TimedOut, QUEUED),
        (triton_error(EXPIRED, "StatusCode.UNAVAILABLE"), TimedOut, QUEUED),
        (triton_error("internal error ab", "500"), InternalError, "internal error ab"),
        (triton_error("Stub process 'x' is not healthy.", "500"), Unavailable, RESTARTING),
        (triton_error("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED"), TimedOut, LATE),
        (TimeoutError("timed out"), TimedOut, LATE),
        (ConnectionRefusedError("refused"), Unavailable, REFUSED),
        (KeyError("odd"), InternalError, "talking to host:1 failed: KeyError: 'odd'"),
    ],
    ids=lambda v: None if isinstance(v, str) else getattr(v, "__name__", str(v)),
)
def test_errors_of_the_wire_become_ours(
    error: Exception, kind: type[TesseraError], sentence: str
) -> None:
    ours = received(error, "host:1", 9.0)
    assert type(ours) is kind
    assert str(ours) == sentence


def test_only_a_refused_connection_is_known_to_be_without_effect() -> None:
    refused = received(ConnectionRefusedError("refused"), "h:1", 1)
    reset = received(ConnectionResetError("reset"), "h:1", 1)
    assert isinstance(refused, Unavailable)
    assert isinstance(reset, Unavailable)
    assert refused.undone
    assert not reset.undone


def test_invalid_input_keeps_its_parts_on_the_way() -> None:
    sent = InvalidInput("STEPS", 0, "an integer from 1 to 1000")
    back = InvalidInput.received(str(sent))
    assert (back.field, back.value, back.accepted) == ("STEPS", "0", "an integer from 1 to 1000")
    assert str(back) == str(sent)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://host", ("http", "host:8000")),
        ("grpc://host", ("grpc", "host:8001")),
        ("http://host:1234/", ("http", "host:1234")),
        ("grpc://[::1]:9", ("grpc", "[::1]:9")),
    ],
)
def test_urls(url: str, parts: tuple[str, str]) -> None:
    assert split_url(url) == parts


@pytest.mark.parametrize(
    "url", ["host:8000", "https://host", "http://", "http://host:x", "http://host/v2"]
)
def test_bad_urls_are_named(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"accepted: http://host\[:port\]"):
        split_url(url)


class TestCommand:
    """`tessera` with a fake transport behind it."""

    @pytest.fixture
    def transport(self, monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
        fake = FakeTransport()
        monkeypatch.setattr(client, "connect", lambda url: fake)
        return fake

    def test_generate_writes_the_picture(self, transport: FakeTransport, tmp_path: Path) -> None:
        out = tmp_path / "new" / "o.png"
        result = run.invoke(
            cli.app, ["generate", "a", "-o", str(out), "--seed", "7", "--steps", "2"]
        )
        assert result.exit_code == 0, result.output
        assert out.exists()
        assert "seed 7, 2 steps of euler, 8 ms" in result.output
        (sent,) = transport.sent("generate")
        assert (sent["SEED"], sent["STEPS"]) == (7, 2)

    def test_n_counts_files_and_seeds(self, transport: FakeTransport, tmp_path: Path) -> None:
        out = tmp_path / "o.png"
        options = ["--n", "3", "--seed", "5", "--json"]
        result = run.invoke(cli.app, ["generate", "a", "-o", str(out), *options])
        assert [p.name for p in sorted(tmp_path.iterdir())] == ["o-1.png", "o-2.png", "o-3.png"]
        assert [s["SEED"] for s in transport.sent("generate")] == [5, 6, 7]
        lines = [json.loads(line) for line in result.stdout.strip().splitlines()]
        assert [Path(line["file"]).name for line in lines] == ["o-1.png", "o-2.png", "o-3.png"]

    @pytest.mark.parametrize(
        ("failure", "code"),
        [
            (InvalidInput("STEPS", 0, "more"), 2),
            (Unavailable("gone", undone=False), 3),
            (TimedOut("late"), 1),
            (InternalError("internal error 1"), 1),
            (Cancelled("cancelled"), 130),
            (KeyboardInterrupt(), 130),
        ],
        ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else str(v),
    )
    def test_exit_codes(
        self, transport: FakeTransport, failure: BaseException, code: int, tmp_path: Path
    ) -> None:
        transport.failures = [failure]
        result = run.invoke(cli.app, ["generate", "a", "-o", str(tmp_path / "o.png")])
        assert result.exit_code == code
        assert not (tmp_path / "o.png").exists()
        assert "Traceback" not in result.output

    @pytest.mark.parametrize("how", ["file", "rectangle", "transparent"])
    def test_edit(self, transport: FakeTransport, tmp_path: Path, how: str) -> None:
        mask = np.zeros((32, 48), np.uint8)
        mask[8:16, 4:24] = 255
        pixels = np.full((32, 48, 3), 77, np.uint8)
        alpha = [255 - mask] if how == "transparent" else []
        Image.fromarray(np.dstack([pixels, *alpha])).save(tmp_path / "i.png")
        Image.fromarray(mask).save(tmp_path / "m.png")
        options = {
            "file": ["--mask", str(tmp_path / "m.png")],
            "rectangle": ["--rect", "4,8,20,8"],
            "transparent": [],
        }[how]
        files = ["-o", str(tmp_path / "o.png"), "--sheet", str(tmp_path / "new" / "s.png")]
        command = ["edit", str(tmp_path / "i.png"), "a star", *options, *files]
        result = run.invoke(cli.app, [*command, "--strength", "0.5"])
        assert result.exit_code == 0, result.output
        (sent,) = transport.sent("edit")
        assert (sent["MASK"] == mask[None]).all()
        assert (sent["IMAGE"] == pixels[None]).all()
        assert sent["STRENGTH"] == 0.5
        with Image.open(tmp_path / "o.png") as out:
            assert (np.asarray(out) == pixels).all()
        with Image.open(tmp_path / "new" / "s.png") as both:
            assert both.width > 3 * 48

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (["--rect", "1,2,3"], "--rect is '1,2,3'; accepted: x,y,width,height"),
            (["--rect", "0,0,99,9"], "is not within the image of 48 x 32 pixels"),
            ([], "there is no mask"),
        ],
        ids=["rectangle", "outside", "nothing"],
    )
    def test_edit_says_what_is_wrong_with_the_mask(
        self, transport: FakeTransport, tmp_path: Path, options: list[str], sentence: str
    ) -> None:
        Image.new("RGB", (48, 32)).save(tmp_path / "i.png")
        result = run.invoke(cli.app, ["edit", str(tmp_path / "i.png"), "a", *options])
        assert result.exit_code == 2
        assert sentence in result.output
        assert not transport.calls

    def test_templates(self, transport: FakeTransport, tmp_path: Path) -> None:
        Image.new("RGB", (16, 8)).save(tmp_path / "i.png")
        result = run.invoke(cli.app, ["templates", "add", str(tmp_path / "i.png"), "--steps", "4"])
        assert "abc  recorded in 0.5 s: 4 steps of euler, 5 MB (float16/1)" in result.output
        result = run.invoke(cli.app, ["templates", "list"])
        assert "not recorded" in result.output
        assert "memory: 1 of 2 MB" in result.output
        assert "reads that memory answered: 25.0 %" in result.output
        result = run.invoke(cli.app, ["templates", "evict", "abc", "--json"])
        assert json.loads(result.stdout) == {"template": "abc", "bytes": 7}
        assert len(transport.sent("templates")) == 3

    def test_adapters(self, transport: FakeTransport) -> None:
        result = run.invoke(cli.app, ["adapters", "list"], env={"COLUMNS": "160"})
        assert "unet 20, text_encoder 6" in result.output
        assert "nothing: it is damaged or ends early" in result.output
        result = run.invoke(cli.app, ["adapters", "list", "--json"])
        assert [json.loads(line)["name"] for line in result.stdout.splitlines()] == ["ink", "torn"]

    @pytest.mark.parametrize(
        ("text", "sent"),
        [
            ("ink", {"name": "ink", "weight": 1.0}),
            ("ink:-0.5", {"name": "ink", "weight": -0.5}),
            ("ink:2:0", {"name": "ink", "weight": 2.0, "text_weight": 0.0}),
        ],
        ids=["name", "weight", "text weight"],
    )
    def test_loras(
        self, transport: FakeTransport, tmp_path: Path, text: str, sent: dict[str, Any]
    ) -> None:
        out = ["-o", str(tmp_path / "o.png")]
        result = run.invoke(cli.app, ["generate", "a", *out, "--lora", text, "--lora", "wash"])
        assert result.exit_code == 0, result.output
        loras = json.loads(transport.sent("generate")[0]["LORAS"])
        assert loras == [sent, {"name": "wash", "weight": 1.0}]

    @pytest.mark.parametrize("text", ["", ":1", "ink:much", "ink:nan", "ink:1:1:1"])
    def test_loras_that_are_none(self, transport: FakeTransport, text: str) -> None:
        result = run.invoke(cli.app, ["generate", "a", "--lora", text], env={"COLUMNS": "160"})
        assert result.exit_code == 2
        assert "accepted: NAME[:WEIGHT[:TEXT_WEIGHT]]" in result.output
        assert not transport.calls

    @pytest.mark.parametrize("command", ["generate", "edit"])
    def test_controls(self, transport: FakeTransport, tmp_path: Path, command: str) -> None:
        pixels = np.full((8, 16, 3), 77, np.uint8)
        file = tmp_path / "i.png"
        Image.fromarray(pixels).save(file)
        settings = "scale=0.5,start=0.1,end=0.6,preprocess=canny,low=50,high=150,resize=fit"
        line = ["generate", "a"] if command == "generate" else ["edit", str(file), "a"]
        line += [] if command == "generate" else ["--rect", "0,0,8,8"]
        line += ["--control", f"edges={file},{settings}", "--control", f"depth={file}"]
        result = run.invoke(cli.app, [*line, "-o", str(tmp_path / "o.png")])
        assert result.exit_code == 0, result.output
        (sent,) = transport.sent(command)
        edges, depth = json.loads(sent["CONTROLS"])
        assert edges == {
            "name": "edges",
            "scale": 0.5,
            "start": 0.1,
            "end": 0.6,
            "preprocess": "canny",
            "resize": "fit",
            "low": 50.0,
            "high": 150.0,
        }
        assert depth == {"name": "depth", "scale": 1.0, "start": 0.0, "end": 1.0}
        assert (sent["CONTROL_IMAGES"] == np.stack([pixels, pixels])[None]).all()

    @pytest.mark.parametrize(
        "text",
        [
            "edges",
            "=i.png",
            "edges=",
            "edges=i.png,scale",
            "edges=i.png,scale=much",
            "edges=i.png,sclae=1",
            "edges=i.png,scale=1,scale=1",
        ],
    )
    def test_controls_that_are_none(self, transport: FakeTransport, text: str) -> None:
        result = run.invoke(cli.app, ["generate", "a", "--control", text], env={"COLUMNS": "300"})
        assert result.exit_code == 2
        assert "accepted: NAME=FILE[,scale=S]" in result.output
        assert not transport.calls

    @pytest.mark.parametrize("name", ["gone.png", "text.png"])
    def test_pictures_that_cannot_be_read(
        self, transport: FakeTransport, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / "text.png").write_text("no picture")
        result = run.invoke(cli.app, ["generate", "a", "--control", f"edges={tmp_path / name}"])
        assert result.exit_code == 2
        assert name in result.output.replace("\n", "")
        assert not transport.calls

    def test_jobs(self, transport: FakeTransport) -> None:
        result = run.invoke(cli.app, ["jobs", "j"])
        assert "j: denoising, step 1 of 2, 0.1 s" in result.output
        run.invoke(cli.app, ["jobs", "j", "--cancel", "--json"])
        assert [s["ACTION"] for s in transport.sent("jobs")] == [b"status", b"cancel"]

    def test_health_fails_when_a_model_is_not_ready(self, transport: FakeTransport) -> None:
        result = run.invoke(cli.app, ["health", "--json"])
        assert result.exit_code == 3
        assert json.loads(result.stdout)["models"]["templates"] is False
