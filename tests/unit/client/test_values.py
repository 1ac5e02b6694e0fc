"""Values that are refused before anything is sent, several pictures at once, callbacks, results."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest
from PIL import Image

from tessera.contract import RANDOM_SEEDS, JobStatus
from tessera_client import AsyncClient, Client
from tests.fakes.transport import AsyncFakeTransport, FakeTransport
from tests.samples.waiting import until


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"seed": 1.5}, TypeError, "seed is 1.5; accepted: an integer from 0"),
        ({"seed": 2**64}, ValueError, "seed is 18446744073709551616; accepted: an integer"),
        ({"seed": [1, 2]}, TypeError, r"seed is \[1, 2\]; .*generate_many takes several"),
        ({"seed": True}, TypeError, "seed is True"),
        ({"steps": 2.7}, TypeError, "steps is 2.7; accepted: an integer"),
        ({"guidance": "high"}, TypeError, "guidance is 'high'; accepted: a number"),
        ({"timeout": float("nan")}, ValueError, "timeout is nan; accepted: a number of seconds"),
        ({"loras": "ink"}, TypeError, "loras is 'ink'; accepted: a list of names"),
        ({"loras": [3]}, TypeError, r"loras\[0\] is 3; accepted: a list of names"),
        ({"loras": [{"nam": "a"}]}, ValueError, r"loras\[0\] has the key 'nam'; accepted: name"),
        ({"controls": [{"name": "a"}]}, ValueError, r"controls\[0\] lacks name or image"),
        ({"timeout": 0}, ValueError, "timeout is 0; accepted: a number of seconds above 0"),
        ({"timeout": -1}, ValueError, "timeout is -1"),
        ({"on_progress": 3}, TypeError, "on_progress is 3; accepted: a function"),
        ({"priority": 4}, ValueError, "priority is 4; accepted: an integer from 1 to 3"),
    ],
    ids=lambda value: None if isinstance(value, str | type) else str(value),
)
def test_what_is_refused(options: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    transport = FakeTransport()
    with Client(transport=transport) as client, pytest.raises(kind, match=sentence):
        client.generate("a", **options)
    assert not transport.calls


def test_a_prompt_is_a_text_and_a_closed_client_is_closed() -> None:
    client = Client(transport=FakeTransport())
    with pytest.raises(TypeError, match="prompt is None; accepted: a str"):
        client.generate(None)  # type: ignore[arg-type]
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.generate("a")
    with pytest.raises(ValueError, match="timeout is 0"):
        Client(timeout=0)


def test_loras_by_name_and_as_dicts() -> None:
    transport = FakeTransport()
    with Client(transport=transport) as client:
        client.generate("a", loras=["ink", {"name": "wash", "weight": 0.5}])
    assert json.loads(transport.sent("generate")[0]["LORAS"]) == [
        {"name": "ink", "weight": 1.0},
        {"name": "wash", "weight": 0.5},
    ]


def test_several_pictures() -> None:
    transport = FakeTransport()
    with Client(transport=transport) as client:
        assert len(list(client.generate_many("a", n=3, seed=5))) == 3
        assert len(list(client.generate_many("a", seed=[9, 1]))) == 2
        list(client.generate_many("a", n=2))
        with pytest.raises(ValueError, match="n is 3; accepted: the 2 that seed has"):
            client.generate_many("a", n=3, seed=[1, 2])
    seeds = [sent["SEED"] for sent in transport.sent("generate")]
    assert sorted(seeds[:5]) == [1, 5, 6, 7, 9]
    assert all(seed < RANDOM_SEEDS for seed in seeds[5:])

    async def talk() -> list[Any]:
        async with AsyncClient(transport=AsyncFakeTransport()) as opened:
            return [each async for each in opened.edit_many(picture, (0, 0, 8, 8), "a", n=3)]

    picture = Image.new("RGB", (8, 8))
    assert len(asyncio.run(talk())) == 3


def test_coroutines_are_awaited_by_the_async_client_and_refused_by_the_other() -> None:
    seen: list[JobStatus] = []
    told = asyncio.Event()

    async def report(status: JobStatus) -> None:
        await asyncio.sleep(0)
        seen.append(status)
        told.set()

    class Waiting(AsyncFakeTransport):
        async def infer(self, call: Any, timeout: float) -> Any:
            if call.model == "generate":
                await told.wait()
            return await super().infer(call, timeout)

    asyncio.run(AsyncClient(transport=Waiting()).generate("a", on_progress=report))
    assert seen
    with pytest.raises(TypeError, match="accepted: a plain function; AsyncClient takes coroutine"):
        Client(transport=FakeTransport()).generate("a", on_progress=report)


def test_a_callback_that_raises_ends_the_job() -> None:
    def report(status: JobStatus) -> None:
        raise LookupError("mine")

    fake = FakeTransport(during=lambda: until(lambda: cancelled(fake)))
    with pytest.raises(LookupError, match="mine"):
        Client(transport=fake).generate("a", job_id="j", on_progress=report)
    assert cancelled(fake)


def cancelled(transport: FakeTransport) -> bool:
    return {"ACTION": b"cancel", "JOB_ID": b"j"} in transport.sent("jobs")


def test_a_result_says_how_it_was_made(tmp_path: Any) -> None:
    with Client(transport=FakeTransport()) as client:
        result = client.generate("a cat", negative_prompt="a dog", loras=["ink"])
    assert result.prompt == "a cat"
    assert (result.settings["seed"], result.settings["negative_prompt"]) == (7, "a dog")
    result.save(tmp_path / "a.png")
    with Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())) as file:
        assert json.loads(file.info["tessera"])["prompt"] == "a cat"
        assert file.info["parameters"].startswith("a cat")
    with pytest.raises(ValueError, match=r"accepted: a name like out\.png"):
        result.save(tmp_path / "a.foo")


def test_capabilities() -> None:
    with Client(transport=FakeTransport()) as client:
        found = client.capabilities()
    assert found.busy is not None
    assert (found.busy.running, found.busy.waiting) == (1, 2)
    assert found.bundle.schedulers["lcm"] == 50
    assert "edm_euler" not in found.bundle.schedulers
