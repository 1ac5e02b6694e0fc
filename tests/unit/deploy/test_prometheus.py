"""Every alert has a case in which it fires; `promtool test rules` runs them where it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "prometheus"


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    rules = [rule for group in read("rules.yaml")["groups"] for rule in group["rules"]]
    severities = {r["alert"]: r["labels"]["severity"] for r in rules if "alert" in r}
    cases = read("rules.test.yaml")
    assert cases["rule_files"] == ["rules.yaml"]
    fired = {
        case["alertname"]: alert["exp_labels"]["severity"]
        for test in cases["tests"]
        for case in test["alert_rule_test"]
        for alert in case.get("exp_alerts", ())
    }
    assert fired == severities
