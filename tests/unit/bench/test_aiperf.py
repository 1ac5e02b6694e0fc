"""AIPerf: the documented commands, and what it exports."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from bench import report
from bench.aiperf import KINDS, arguments, read_export
from bench.server import ROOT
from bench.tables import TABLES
from tests.samples.aiperf import EXPORT

SETTINGS = {"requests": 24, "at_once": 4, "steps": 10}


def test_an_export_is_read() -> None:
    run = read_export(json.dumps(EXPORT))
    assert (run.version, run.requests, run.errors) == ("0.13.0", 22, 2)
    expected = {"avg": 7234.5, "p50": 7234.5, "p95": 8226.8, "min": 6132.0, "max": 8337.0}
    assert run.latency_ms == pytest.approx(expected, abs=0.1)
    assert run.requests_per_s == 0.53


def test_a_run_without_errors_has_no_count_of_them() -> None:
    content = {name: of for name, of in EXPORT.items() if not name.startswith("error_")}
    assert read_export(json.dumps(content)).errors == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"was_cancelled": True}, "ended early: cancelled"),
        ({"is_complete": False, "incomplete_reason": "records stalled"}, "early: records stalled"),
        ({"request_latency": None}, r"no request was answered: .*503"),
        ({"request_latency": {"unit": "ns", "avg": 1}}, "request_latency is in 'ns'; .*'ms'"),
    ],
    ids=["cancelled", "incomplete", "all failed", "another unit"],
)
def test_what_is_no_measurement_is_refused(change: dict[str, Any], said: str) -> None:
    content = {name: of for name, of in (EXPORT | change).items() if of is not None}
    with pytest.raises(ValueError, match=said):
        read_export(json.dumps(content))


@pytest.mark.parametrize("kind", KINDS)
def test_the_documented_command_is_what_the_benchmark_runs(kind: str) -> None:
    text = (ROOT / "docs" / "internals" / "measurements.md").read_text()
    commands = [
        shlex.split("aiperf profile" + block.split("\n\n")[0].replace("\\\n", " "))
        for block in text.split("    aiperf profile")[1:]
    ]
    url, tokenizer = "http://127.0.0.1:8080", "bundles/demo/tokenizer"
    assert ["aiperf", *arguments(kind, url, SETTINGS, tokenizer)] in commands


def test_the_table(tmp_path: Any) -> None:
    run = {"requests": 22, "errors": 2, "requests_per_s": 0.53}
    latency = {"avg": 7234.5, "p50": 7200.0, "p95": 8226.8, "min": 6132.0, "max": 8337.0}
    with report.elsewhere(tmp_path):
        results = {"image-edit": run | {"latency_ms": latency}}
        report.write("aiperf", {}, results, machine={"cpu": "one"})
        row = TABLES["aiperf"]().splitlines()[-1]
    assert row == "| `image-edit` | 22 | 2 | 7,234 | 7,200 | 8,227 | 6,132 | 8,337 | 0.53 |"
