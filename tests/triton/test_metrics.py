"""What a real server exports is what the table says, and what rules and dashboard ask for."""

from __future__ import annotations

import re
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from bench.server import Server
from tessera.errors import Cancelled, InvalidInput
from tessera.shared.metrics import PREFIX, TABLE, Metric
from tessera_client import Client, Control, Lora
from tests.samples.images import island, noise_blocks
from tests.samples.jobs import ENDLESS
from tests.samples.promql import expressions, missing, series_of, values_of
from tests.samples.waiting import PATIENCE_S, comes, until

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def scraped(server: Server) -> str:
    with urllib.request.urlopen(f"http://localhost:{server.metrics_port}/metrics") as answer:
        text: str = answer.read().decode()
        return text


def sum_of(server: Server, name: str, *labels: str) -> float:
    values = values_of(scraped(server), f"{PREFIX}{name}")
    return sum(value for key, value in values.items() if set(labels) <= set(key))


def settle(server: Server) -> None:
    """Wait until what other tests began has ended and been published: that comes before what is
    done later.
    """
    comes(lambda: sum_of(server, "running") == sum_of(server, "queued") == 0)
    refused = sum_of(server, "requests_total", "generate", "refused")
    with Client(server.http) as client, pytest.raises(InvalidInput):
        client.generate("")
    comes(lambda: sum_of(server, "requests_total", "generate", "refused") > refused)


@pytest.fixture(scope="module")
def traffic(server: Server) -> dict[str, float]:
    """Of each kind something; how much of some metrics there was before."""
    settle(server)
    before = {
        name: sum_of(server, name)
        for name in ("lora_switches_total", "lora_switch_seconds_count", "control_loads_total")
    }
    with Client(server.http, timeout=PATIENCE_S) as client:
        for path in ("done", "refused", "cancelled", "timed_out", "failed"):
            before[path] = sum_of(server, "requests_total", "generate", path)
        before["edit"] = sum_of(server, "request_latency_seconds_count", "edit")
        picture = client.generate("a red circle", seed=1, steps=3).image
        client.generate("a red circle", steps=3, loras=[Lora("night", 1.0)])
        client.generate("a", steps=3, controls=[Control("edges", noise_blocks(1))])
        client.edit(picture, island(), "a blue square", steps=3, mode="dense")
        with pytest.raises(InvalidInput):
            client.generate("")
        with pytest.raises(Cancelled):
            client.generate(
                "a", job_id="metered", on_progress=lambda s: client.cancel("metered"), **ENDLESS
            )
    return before


def test_requests_are_counted_by_outcome(server: Server, traffic: dict[str, float]) -> None:
    def grown(outcome: str) -> float:
        return sum_of(server, "requests_total", "generate", outcome) - traffic[outcome]

    ended = {"done": 3, "refused": 1, "cancelled": 1}
    comes(lambda: {outcome: grown(outcome) for outcome in ended} == ended)
    assert (grown("failed"), grown("timed_out")) == (0, 0)
    edits = partial(sum_of, server, "request_latency_seconds_count", "edit")
    comes(lambda: edits() == traffic["edit"] + 1)
    comes(lambda: sum_of(server, "cancelled_steps_saved_total") > 0)
    comes(lambda: sum_of(server, "running") == sum_of(server, "queued") == 0)
    assert sum_of(server, "slots") == 8


def test_loras_and_controlnets_are_counted(server: Server, traffic: dict[str, float]) -> None:
    comes(lambda: sum_of(server, "lora_loaded") >= 1)
    comes(lambda: sum_of(server, "step_seconds_count", "control") > 0)
    assert sum_of(server, "control_loads_total") >= traffic["control_loads_total"]
    counted, timed = "lora_switches_total", "lora_switch_seconds_count"
    comes(lambda: sum_of(server, counted) == sum_of(server, timed))  # by two looks


def test_the_table_is_what_a_server_exports(server: Server, traffic: dict[str, float]) -> None:
    scrape = scraped(server)
    exported = dict(re.findall(rf"^# TYPE {PREFIX}(\w+) (\w+)$", scrape, re.MULTILINE))
    assert exported == {name: metric.kind for name, metric in TABLE.items()}
    found = series_of(scrape)
    for name, metric in TABLE.items():
        assert_series(found, name, metric)


def assert_series(found: dict[str, list[dict[str, str]]], name: str, metric: Metric) -> None:
    histogram = metric.kind == "histogram"
    there = found[f"{PREFIX}{name}{'_count' if histogram else ''}"]
    labelled = [frozenset(s.items() - {("instance", "a:1")}) for s in there]
    assert len(labelled) == len(set(labelled))
    assert set(labelled) == {frozenset(labels.items()) for labels in metric.series()}
    if histogram:
        bounds = {labels["le"] for labels in found[f"{PREFIX}{name}_bucket"]}
        assert {float(bound) for bound in bounds} == {*metric.bounds, float("inf")}


def test_every_expression_names_what_is_there(server: Server, traffic: dict[str, float]) -> None:
    found, named = series_of(scraped(server)), list(expressions(DEPLOY))
    assert len(named) > 30
    assert not {where: faults for where, text in named if (faults := missing(text, found))}
    for wrong in (
        "sum by (le) (rate(tessera_running[5m]))",
        'rate(tessera_requests_total{outcome="broken"}[5m])',
        "tessera_run",
    ):
        assert missing(wrong, found)


def test_triton_counts_the_end_of_every_sequence_as_cancelled(
    server: Server, traffic: dict[str, float], http_client: Client
) -> None:
    """If this fails, the section "Triton's own sums" of docs/metrics.md is out of date."""

    def ends() -> float:
        values = values_of(scraped(server), "nv_inference_request_failure")
        return values["denoise", "CANCELED", "1"]

    def rest() -> bool:
        """Whether the ends of other tests' sequences have been counted."""
        counted = ends()
        time.sleep(2)
        return ends() == counted

    comes(rest)
    before = ends()
    http_client.generate("a", steps=2)
    assert until(lambda: ends() == before + 1)
