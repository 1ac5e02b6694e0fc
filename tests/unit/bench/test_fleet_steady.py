"""What the benches of faults and of scaling count, and the latter's picture."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from PIL import Image

from bench import report
from bench.fleet_faults import FAULTS, REDIS, Result, merged, table
from bench.fleet_scale import Moment, draw, pictured
from bench.fleet_steady import Sent, counted

DRAWN = Sent(10.0, 12.0, begun=True, worker="a")
LOST = Sent(10.0, 11.0, "Unavailable", "the worker is gone", begun=True)
MOMENTS = [
    Moment(at, clients, live, 0, 1.0, clients, 0)
    for at, clients, live in ((0.0, 1, 1), (5.0, 12, 1), (9.0, 12, 3), (20.0, 1, 2))
]


def test_lost_requests_are_told_apart_by_whether_they_had_begun() -> None:
    waited = replace(LOST, begun=False, error="TimedOut", sentence="too late")
    assert counted([DRAWN, DRAWN, LOST, waited, waited]) == {
        "drawn": 2,
        "lost_begun": 1,
        "lost_not_begun": 2,
        "errors": {"Unavailable": 1, "TimedOut": 2},
        "sentences": ["the worker is gone", "too late"],
    }


def test_pictures_and_tables(tmp_path: Path) -> None:
    moments = [asdict(moment) for moment in MOMENTS]
    sent = [pictured(each, 9.0) for each in (DRAWN, LOST)]
    assert sent[1] == {"began": 1.0, "ended": 2.0, "error": "Unavailable"}
    draw({"moments": moments, "sent": sent}, tmp_path / "scale.png")
    with Image.open(tmp_path / "scale.png") as image:
        assert image.width > 500
    results = [Result(name, None, 1.0, 2.0, None, counted([DRAWN, LOST])) for name in FAULTS]
    assert table(results).row_count == len(FAULTS)


def test_faults_that_were_not_done_now_stay_in_the_report(tmp_path: Path) -> None:
    file = tmp_path / "fleet_faults.json"
    done = [Result(name, None, 1.0, 2.0, None, {}) for name in ("gcs", "actor", f"gcs{REDIS}")]
    rows = merged(file, done)
    assert [row["fault"] for row in rows] == ["actor", "gcs", f"gcs{REDIS}"]
    report.write("fleet_faults", {}, rows, machine={}, out=file)
    again = merged(file, [Result("actor", None, 1.0, 9.0, None, {})])
    assert [row["well_s"] for row in again] == [9.0, 2.0, 2.0]
    assert all(row["date"] for row in again)
