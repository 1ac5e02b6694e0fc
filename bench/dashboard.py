"""Draws deploy/grafana/tessera.json from a real Prometheus: `python -m bench.dashboard --prometheus
PATH`.

Runs the demo bundle under mixed traffic, has Prometheus scrape it with deploy/prometheus, evaluates
every expression of the dashboard and every rule, and draws the panels with matplotlib. Ends with
status 1 if an expression gives no data, or a rule fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.plots import save
from bench.server import DEMO_BUNDLE, ROOT, Server, free_ports, serving
from tessera.errors import TesseraError
from tessera_client import Client, Control, Lora

DEPLOY = ROOT / "deploy"
OUT = ROOT / "docs" / "images" / "dashboard.webp"
SCRAPE_S = 2
COLUMNS = 3


@contextlib.contextmanager
def prometheus(executable: Path, folder: Path, server: Server) -> Iterator[str]:
    """One that scrapes a server with the rules of deploy/; its URL."""
    port = free_ports(1)[0]
    config = (DEPLOY / "prometheus" / "prometheus.yaml").read_text()
    config = config.replace("15s", f"{SCRAPE_S}s").replace("8002", str(server.metrics_port))
    config = config.replace("rules.yaml", str(DEPLOY / "prometheus" / "rules.yaml"))
    (folder / "prometheus.yaml").write_text(config)
    line = [str(executable), f"--config.file={folder / 'prometheus.yaml'}"]
    line += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("wb") as log, subprocess.Popen(line, stderr=log) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def ask(url: str, path: str, **query: Any) -> Any:
    """The `data` of an answer of Prometheus' HTTP API."""
    asked = f"{url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.load(answer)["data"]


def make_traffic(server: Server, end: float, number: int) -> None:
    """Requests of all kinds, one after the other, until `end`."""
    choose = np.random.default_rng(number)
    blocks = choose.integers(0, 256, (128, 128, 3), np.uint8)
    mask = np.zeros((128, 128), np.uint8)
    with Client(server.http, timeout=60) as client:
        picture = client.generate("a red circle", steps=8, seed=1).image

        def edit() -> None:
            size = int(choose.integers(16, 96))
            mask[:] = 0
            mask[16 : 16 + size, 16 : 16 + size] = 255
            mode = choose.choice(["sparse", "dense"])
            client.edit(picture, mask, "a blue square", steps=8, mode=str(mode))

        def cancel() -> None:
            client.generate("a", steps=100, timeout=float(choose.uniform(0.5, 1.5)))

        kinds: list[Callable[[], Any]] = [
            lambda: client.generate("a red circle", steps=int(choose.integers(5, 25))),
            lambda: client.generate("a", steps=8, loras=[Lora("night", 1.0)]),
            lambda: client.generate("a", steps=8, loras=[Lora("outline", 1.0)]),
            lambda: client.generate("a", steps=8, controls=[Control("edges", blocks)]),
            lambda: client.generate(""),
            edit,
            edit,
            cancel,
        ]
        while time.time() < end:
            with contextlib.suppress(TesseraError):
                kinds[choose.integers(len(kinds))]()


def panels() -> list[dict[str, Any]]:
    """Of the dashboard."""
    content = json.loads((DEPLOY / "grafana" / "tessera.json").read_text())
    found: list[dict[str, Any]] = content["panels"]
    return found


def curves(url: str, panel: dict[str, Any], begin: float, end: float) -> dict[str, Any]:
    """The series of a panel by their legend: rows of (seconds since `begin`, value)."""
    found = {}
    for target in panel["targets"]:
        text = target["expr"].replace("$__rate_interval", "20s").replace("$instance", ".*")
        data = ask(url, "query_range", query=text, start=begin, end=end, step=SCRAPE_S)
        for series in data["result"]:
            legend = target["legendFormat"]
            for label, value in series["metric"].items():
                legend = legend.replace(f"{{{{{label}}}}}", value)
            points = np.array(series["values"], float)
            found[legend] = points - [begin, 0.0]
    return found


def draw(drawn: list[tuple[str, str, dict[str, Any]]], file: Path) -> None:
    """Panels of (title, unit, curves) as one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(-(-len(drawn) // COLUMNS), COLUMNS, figsize=(15, 12))
    for axis, (title, unit, series) in zip(axes.flat, drawn, strict=False):
        for legend, points in series.items():
            if np.nanmax(points[:, 1], initial=0.0) > 0:
                axis.plot(points[:, 0], points[:, 1], label=legend)
        axis.set_title(f"{title} ({unit})", fontsize=10)
        axis.set_ylim(bottom=0)
        if axis.lines:
            axis.legend(fontsize=7, loc="upper left")
    figure.supxlabel("seconds")
    figure.tight_layout()
    save(figure, file, dpi=70)


def main() -> None:
    """Run, check and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", type=Path, required=True, help="its executable")
    parser.add_argument("--seconds", type=float, default=120.0, help="of traffic")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            serving(DEMO_BUNDLE, folder / "serve.log", "--lora-path=refit") as server,
            prometheus(options.prometheus, folder, server) as url,
        ):
            begin = time.time()
            end = begin + options.seconds
            clients = [
                threading.Thread(target=make_traffic, args=(server, end, i)) for i in range(5)
            ]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            time.sleep(2 * SCRAPE_S)
            drawn = [
                (p["title"], p["fieldConfig"]["defaults"]["unit"], curves(url, p, begin, end))
                for p in panels()
            ]
            rules = [r for g in ask(url, "rules")["groups"] for r in g["rules"]]
    draw(drawn, options.out)
    empty = [title for title, _, series in drawn if not series]
    broken = [rule["name"] for rule in rules if rule["health"] != "ok"]
    print(f"{len(drawn)} panels, {len(rules)} rules; without data: {empty}; failed: {broken}")
    if empty or broken:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
