"""OpenTelemetry: Triton's spans and ours of one picture, by the example that collects both."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.server import ROOT, free_ports, serving


def test_spans_of_a_picture(bundle: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    settings = (
        "mode=opentelemetry",
        "rate=1",
        "level=TIMESTAMPS",
        f"opentelemetry,url=http://127.0.0.1:{port}/v1/traces",
        "opentelemetry,bsp_schedule_delay=200",
    )
    triton = [word for setting in settings for word in ("--trace-config", setting)]
    trace = tmp_path / "trace.json"
    with serving(bundle, tmp_path / "log", f"--trace={trace}", "--", *triton) as server:
        example = ROOT / "examples" / "spans.py"
        done = subprocess.run(
            [sys.executable, str(example), server.http, str(trace), str(port)],
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.startswith("span of job ")
    depths = {line[:36].strip(): len(line) - len(line.lstrip()) for line in lines}
    assert depths["client"] == 0
    assert depths["generate"] == 4  # Triton's, of the client's trace
    assert {depths[name] for name in ("encode", "render", "decode")} == {6}
    assert depths["encode: engine"] == 8  # ours, below Triton's
    assert sum(line.strip().startswith("tick ") for line in lines) == 4
    assert sum("decoder half" in line for line in lines) == 4
