"""Expressions of PromQL against one scrape: whether what they name is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml

Series = dict[str, list[dict[str, str]]]
"""By name, the labels of each."""

_LINE = re.compile(r"^(\w+)(?:\{(.*)\})? \S+$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_OWN = {"up": [{"job": "tessera", "instance": "a:1"}]}
"""What Prometheus makes of every scrape; it adds the label `instance` to all."""


def series_of(scrape: str) -> Series:
    """Those of a scrape, in Prometheus' text format."""
    found: Series = {name: [dict(s) for s in series] for name, series in _OWN.items()}
    for name, labels in _LINE.findall(scrape):
        found.setdefault(name, []).append(dict(_LABEL.findall(labels)) | {"instance": "a:1"})
    return found


def values_of(scrape: str, name: str) -> dict[tuple[str, ...], float]:
    """Of one metric, by the values of its labels, which are sorted by name."""
    rows = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", scrape, re.MULTILINE)
    return {
        tuple(value for _, value in sorted(_LABEL.findall(labels))): float(number)
        for labels, number in rows
    }


def expressions(deploy: Path) -> Iterator[tuple[str, str]]:
    """Every expression of the rules and the dashboard, with where it is; recording rules have their
    name in front of a colon.
    """
    for group in yaml.safe_load((deploy / "prometheus" / "rules.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule.get("record") or rule["alert"], rule["expr"]
    for panel in json.loads((deploy / "grafana" / "tessera.json").read_text())["panels"]:
        for target in panel["targets"]:
            text = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            yield f"{panel['title']} {target['refId']}", text


def missing(expression: str, series: Series) -> list[str]:
    """What an expression names and the series lack: a metric, a label's value, a label."""
    return [fault for fault, _ in _walk(promql_parser.parse(expression), series) if fault]


def _walk(node: Any, series: Series) -> Iterator[tuple[str, set[str]]]:
    """Faults, each with the labels of the series that the node stands for."""
    if isinstance(node, promql_parser.MatrixSelector):
        node = node.vector_selector
    if isinstance(node, promql_parser.VectorSelector):
        matching = [s for s in series.get(node.name or "", []) if _fits(node, s)]
        yield ("" if matching else f"no series of {node.name} fits", set().union(*matching))
        return
    parts = [getattr(node, name, None) for name in ("expr", "lhs", "rhs")]
    below: set[str] = set()
    for part in [*parts, *getattr(node, "args", [])]:
        if part is not None:
            for fault, labels in _walk(part, series):
                below |= labels
                yield fault, labels
    modifier = getattr(node, "modifier", None)
    if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
        for label in set(modifier.labels) - below:
            yield f"no label {label}", below


def _fits(selector: promql_parser.VectorSelector, labels: dict[str, str]) -> bool:
    for matcher in selector.matchers.matchers:
        value, operator = labels.get(matcher.name, ""), str(matcher.op).removeprefix("MatchOp.")
        wanted = matcher.value if operator.endswith("Re") else re.escape(matcher.value)
        if bool(re.fullmatch(wanted, value)) is operator.startswith("Not"):
            return False
    return True
