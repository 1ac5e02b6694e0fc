"""Exports of AIPerf 0.13.0."""

from __future__ import annotations

from typing import Any

EXPORT: dict[str, Any] = {
    "schema_version": "1.4",
    "aiperf_version": "0.13.0",
    "request_throughput": {"unit": "requests/sec", "avg": 0.53},
    "request_latency": {
        "unit": "ms",
        "avg": 7234.5,
        "p1": 6154.05,
        "p5": 6242.25,
        "p10": 6352.5,
        "p25": 6683.25,
        "p50": 7234.5,
        "p75": 7785.75,
        "p90": 8116.5,
        "p95": 8226.75,
        "p99": 8314.95,
        "min": 6132.0,
        "max": 8337.0,
        "std": 666.1503208735999,
        "count": 22,
        "sum": 159159.0,
    },
    "request_count": {"unit": "requests", "avg": 22.0},
    "error_request_count": {"unit": "requests", "avg": 2.0},
    "input_config": {
        "models": {"items": [{"name": "demo"}]},
        "endpoint": {"urls": ["http://127.0.0.1:8080"], "type": "image_generation"},
        "datasets": [
            {"name": "main", "type": "synthetic", "entries": 24, "prompts": {"isl": {"mean": 12.0}}}
        ],
        "phases": [
            {
                "name": "profiling",
                "kind": "profiling",
                "type": "concurrency",
                "requests": 24,
                "concurrency": 4,
            }
        ],
        "artifacts": {"dir": "artifacts"},
        "tokenizer": {},
    },
    "was_cancelled": False,
    "is_complete": True,
    "error_summary": [
        {
            "error_details": {"code": 503, "type": "Service Unavailable", "message": "no room"},
            "count": 2,
        }
    ],
    "start_time": "2025-11-24T16:00:00",
    "end_time": "2025-11-24T16:00:45",
}
"""Written by its own `MetricsJsonExporter` for 22 made latencies (6,132 ms and every 105 ms more)
and two requests that failed, with a throughput of 0.53.
"""
