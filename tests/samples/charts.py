"""The Helm chart, rendered by Helm's own engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm" / "tessera"
_helm = pytest.importorskip("helm_python", reason="pip install helm-python-sdk==0.2.2")


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    """What `helm template tessera deploy/helm/tessera` makes of values beside the defaults.

    Raises:
        ValueError: the values are refused, by the schema or by a template.
    """
    chart = _helm.Chart.load(CHART)
    try:
        chart.validate_schema(values)
        files = chart.render(values, name="tessera", namespace="default")
    except _helm.HelmError as error:
        raise ValueError(str(error)) from error
    finally:
        chart.close()
    manifests = [text for path, text in sorted(files.items()) if path.endswith(".yaml")]
    return [each for text in manifests for each in yaml.safe_load_all(text) if each]


def lint() -> list[str]:
    """What `helm lint --strict` has against the chart."""
    report = _helm.lint(CHART, strict=True)
    return [m["error"] for m in report["messages"] if m["severity"] > 1] + report["errors"]
