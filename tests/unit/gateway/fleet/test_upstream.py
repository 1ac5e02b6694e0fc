"""Answers of a fleet, read as those of one server."""

from __future__ import annotations

import asyncio
import json

from tessera_gateway.fleet.upstream import FleetUpstream, Made
from tests.samples.fronts import fleet


def test_a_whole_answer_is_read_like_an_open_one() -> None:
    async def run() -> None:
        async with Made(503, {}, b"a sentence") as answer:
            assert await answer.content.read(5) == b"a sen"
            assert await answer.content.read() == b"a sentence"
            assert [piece async for piece in answer.content.iter_any()] == [b"a sentence"]

    asyncio.run(run())


def test_what_the_fleet_answers_itself_has_the_form_that_was_asked_for() -> None:
    """The generate extension has names and values, an inference has tensors."""
    done = {"template": "t", "bytes": 7}
    values = {"ACTION": "evict", "TEMPLATE": "t"}
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [text]}
        for name, text in values.items()
    ]

    async def run() -> None:
        async with fleet(names="a") as it:
            it.workers[0].templates = done
            upstream = FleetUpstream(it.pool)
            answers = []
            for kind, content in (("generate", values), ("infer", {"inputs": inputs})):
                path, body = f"/v2/models/templates/{kind}", json.dumps(content).encode()
                answer = await upstream.send("POST", path, body)
                assert answer.status == 200
                answers.append(json.loads(await answer.read()))
            flat, tensors = answers
            assert json.loads(flat.pop("RESULT")) == done
            assert flat == {"model_name": "templates", "model_version": "1"}
            assert json.loads(tensors["outputs"][0]["data"][0]) == done

    asyncio.run(run())
