"""One picture's spans: Triton's by OpenTelemetry, and beside them those of Tessera's own stages.

    tessera-serve bundles/demo --trace trace.json -- --trace-config mode=opentelemetry \\
        --trace-config rate=1 --trace-config level=TIMESTAMPS \\
        --trace-config opentelemetry,url=http://127.0.0.1:4318/v1/traces \\
        --trace-config opentelemetry,bsp_schedule_delay=500
    python examples/spans.py http://localhost:8000 trace.json [4318]

This program is the client and the collector: OTLP over HTTP in JSON, which is what Triton sends.
The client chooses the trace's id (`traceparent`), Triton's spans have it. Tessera's are read from
the file of `--trace`, get the same id and Triton's spans as parents, and go to the collector, too.
"""

import json
import secrets
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tessera_client import Client

MODELS = ("generate", "encode", "render", "decode")
UNIX_NS = time.time_ns() - time.monotonic_ns()  # what Tessera's times need to be Triton's


class Collector(BaseHTTPRequestHandler):
    """Takes spans."""

    spans: list[dict] = []  # noqa: RUF012 - one for the program

    def do_POST(self) -> None:
        """Take what one request brings."""
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in content["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                self.spans.extend(scope["spans"])
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def span(trace: str, parent: str, name: str, began: int, ended: int) -> dict:
    """A span; times in nanoseconds since 1970."""
    return {
        "traceId": trace,
        "spanId": secrets.token_hex(8),
        "parentSpanId": parent,
        "name": name,
        "kind": 1,
        "startTimeUnixNano": str(began),
        "endTimeUnixNano": str(ended),
    }


def send(port: int, spans: list[dict]) -> None:
    """Send spans to a collector."""
    body = {"resourceSpans": [{"scopeSpans": [{"scope": {"name": "tessera"}, "spans": spans}]}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/traces",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request).close()


def of_trace(trace: str) -> list[dict]:
    """What has come of a trace, in the order of its beginnings."""
    found = [s for s in list(Collector.spans) if s["traceId"] == trace]
    return sorted(found, key=lambda s: int(s["startTimeUnixNano"]))


def wait_for_triton(trace: str) -> list[dict]:
    """Triton's spans of a trace; it sends them in batches."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = of_trace(trace)
        if set(MODELS) <= {s["name"] for s in found}:
            return found
        time.sleep(0.1)
    raise SystemExit(f"no spans of {', '.join(MODELS)} came; was Triton told the URL?")


def bars(file: Path) -> list[dict]:
    """Tessera's own spans: model, name, number of a tick, begin and end in nanoseconds."""
    events = json.loads(file.read_text().rstrip().rstrip(",") + "]")
    models = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    return [
        {
            "model": models[e["pid"]],
            "name": e["name"],
            "number": e["args"].get("number"),
            "began": int(1e3 * e["ts"]) + UNIX_NS,
            "ended": int(1e3 * (e["ts"] + e["dur"])) + UNIX_NS,
        }
        for e in events
        if e["ph"] == "X"
    ]


def ours(trace: str, triton: list[dict], found: list[dict], ticks: range) -> list[dict]:
    """Tessera's spans of a picture, below Triton's: by model and time, and by the tick's number."""
    made = []

    def add(parent: dict, bar: dict, name: str) -> dict:
        made.append(span(trace, parent["spanId"], name, bar["began"], bar["ended"]))
        return made[-1]

    by_name = {s["name"]: s for s in triton}
    for model in MODELS[1:]:
        whole = by_name[model]
        first, last = int(whole["startTimeUnixNano"]), int(whole["endTimeUnixNano"])
        for bar in found:
            if bar["model"] == model and first <= bar["began"] and bar["ended"] <= last:
                add(whole, bar, f"{model}: {bar['name']}")
    for tick in (b for b in found if b["name"] == "tick" and b["number"] in ticks):
        parent = add(by_name["render"], tick, f"tick {tick['number']}")
        for bar in found:
            inside = tick["began"] <= bar["began"] and bar["ended"] <= tick["ended"]
            if bar["model"] == "denoise" and bar["name"].endswith("half") and inside:
                add(parent, bar, bar["name"])
    return made


def show(spans: list[dict], parent: str, began: int, depth: int = 0) -> None:
    """Print the spans below one: when it began, how long it took."""
    for each in spans:
        if each.get("parentSpanId") == parent:
            first, last = (int(each[f"{end}TimeUnixNano"]) for end in ("start", "end"))
            name = "  " * depth + each["name"]
            print(f"{name:36}{(first - began) / 1e6:9.1f}{(last - first) / 1e6:9.1f}")
            show(spans, each["spanId"], began, depth + 1)


url, file, *rest = sys.argv[1:]
port = int(rest[0]) if rest else 4318
collector = ThreadingHTTPServer(("127.0.0.1", port), Collector)
threading.Thread(target=collector.serve_forever, daemon=True).start()

trace_id, client_id = secrets.token_hex(16), secrets.token_hex(8)
began_ns = time.time_ns()
with Client(url, headers={"traceparent": f"00-{trace_id}-{client_id}-01"}) as client:
    info = client.generate("a large red circle on a blue background", seed=1, steps=4).info
root = span(trace_id, "", "client", began_ns, time.time_ns()) | {"spanId": client_id}
sent = wait_for_triton(trace_id)
ticks = range(info.first_tick, info.last_tick + 1)
send(port, [root, *ours(trace_id, sent, bars(Path(file)), ticks)])
print(f"{'span of job ' + info.job_id:36}{'began':>9}{'took':>9}  ms")
show(of_trace(trace_id), "", began_ns)
collector.shutdown()
