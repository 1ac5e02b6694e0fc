"""What the front tells Prometheus."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tessera_gateway.fleet import wire
from tessera_gateway.fleet.book import Book
from tessera_gateway.fleet.learning import read_info
from tessera_gateway.fleet.metrics import OUTCOMES, FleetMetrics, State
from tessera_gateway.fleet.peek import Peek
from tessera_gateway.fleet.pool import Lost, Member, Pool, Seen
from tessera_gateway.fleet.score import Prediction
from tests.fakes.kserve import fake_workers

OPERATIONS = Path(__file__).resolve().parents[4] / "docs" / "operations.md"


def values(metrics: FleetMetrics) -> dict[tuple[str, ...], float]:
    """By name, and labels' values in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_the_docs_name_all_and_no_others() -> None:
    told = {f.name for f in FleetMetrics(State).registry.collect()}
    rows = re.findall(r"^\| `(tessera_fleet_\w+)` \|", OPERATIONS.read_text(), re.MULTILINE)
    names = [row.removesuffix("_total") for row in rows]
    assert sorted(names) == sorted(told)


def test_how_requests_end() -> None:
    peek = Peek("generate", job="j")

    async def run() -> None:
        async with fake_workers("a", "b") as (_, servers):
            pool = Pool(Book())
            pool.have(servers)
            for server in servers:
                await pool.ask(server.grpc)

            async def route(answer: Any, seen: Seen | None = None) -> None:
                async def send(member: Member) -> bytes:
                    if isinstance(answer, BaseException):
                        raise answer
                    return b""

                await pool.route(peek, send, lambda _: seen or Seen())

            await route("")
            await route("", Seen(fine=False))
            for error in (
                ValueError(),
                Lost(RuntimeError(), gone=False),
                asyncio.CancelledError(),
                Lost(RuntimeError(), gone=True),
            ):
                with pytest.raises(type(error)):
                    await route(error)
            found: dict[str, float] = dict.fromkeys(OUTCOMES, 0.0)
            for (name, *labels), value in values(pool.metrics).items():
                if name == "tessera_fleet_requests_total":
                    found[labels[0]] += value
            assert found == {
                "done": 1,
                "refused": 2,
                "unavailable": 2,
                "cancelled": 1,
                "lost": 2,
            }
            assert values(pool.metrics)["tessera_fleet_retries_total",] == 2
            assert values(pool.metrics)["tessera_fleet_workers", "unreachable"] == 2
            pool.have([])
            assert "tessera_fleet_requests_total" not in {name for name, *_ in values(pool.metrics)}
            await pool.close()

    asyncio.run(run())


def test_predictions_and_their_errors() -> None:
    async def run() -> None:
        async with fake_workers("a") as (workers, servers):
            workers[0].info = '{"total_ms": 2560, "mode": "dense"}'
            pool = Pool(Book())
            pool.have(servers)
            name = servers[0].grpc
            for _ in range(5):
                await pool.ask(name)
                await pool.route(Peek("generate", job="j"), _send, _seen)
            told = values(pool.metrics)
            assert told["tessera_fleet_predicted_seconds_count", "dense"] == 5
            assert told["tessera_fleet_predicted_seconds_sum", "dense"] == pytest.approx(
                4 * 1.28 + 2.56
            )
            assert told["tessera_fleet_error_ratio_bucket", "1.0", "dense"] == 1
            assert told["tessera_fleet_error_ratio_bucket", "2.0", "dense"] == 5
            assert told["tessera_fleet_scale", "dense", name] == 2.0
            assert told["tessera_fleet_workers", "live"] == 1
            assert told["tessera_fleet_work_seconds", name] == 0
            await pool.close()

    async def _send(member: Member) -> bytes:
        return await member.call("ModelInfer", wire.request_of("generate", {"JOB_ID": "j"}))

    def _seen(answer: bytes) -> Seen:
        return Seen(drawn=read_info(wire.output_text(answer, "INFO")))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("peek", "prediction", "needs"),
    [
        (Peek("generate"), Prediction(1.0), {}),
        (Peek("edit", mask=0.1), Prediction(1.0), {"recording": False}),
        (Peek("edit", mask=0.1), Prediction(1.0, path="sparse"), {"recording": True}),
        (
            Peek("edit", mask=0.1),
            Prediction(1.0, missing={"read": 5.0}, path="sparse"),
            {"recording": False},
        ),
        (Peek("edit", mask=0.1, mode="dense"), Prediction(1.0), {}),
        (
            Peek("generate", loras=(("a", 1.0),), controls=("b",)),
            Prediction(1.0, missing={"refit": 5.0, "controls": 0.0}),
            {"lora": False, "controlnet": True},
        ),
    ],
    ids=["none", "no recording", "in memory", "on disk", "a dense edit", "LoRA and ControlNet"],
)
def test_what_a_request_needs(peek: Peek, prediction: Prediction, needs: dict[str, bool]) -> None:
    assert prediction.needs(peek) == needs
