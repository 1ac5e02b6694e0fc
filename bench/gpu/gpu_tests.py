"""Runs `tests/gpu` and reports each test as soon as it is over."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from bench.gpu.environment import ROOT
from bench.gpu.timing import Report, options

ARGUMENTS = (
    "--override-ini=filterwarnings=default",  # this machine's versions are not the pinned ones
    "-p",
    "no:cacheprovider",
    "-q",
    f"--rootdir={ROOT}",
    f"--config-file={ROOT / 'pyproject.toml'}",
)


class Watcher:
    """A pytest plugin that writes a row for each test."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after the set-up, the call and the end of each test."""
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.partition("::")[2]
            text = "" if report.passed else report.longreprtext.strip()
            why = text.rpartition("Skipped: " if report.skipped else "\n")[2].rstrip("')")
            row = {"test": name, "outcome": report.outcome, "s": report.duration}
            self._report.add(**row, why=why[:80])


def main(arguments: Sequence[str] | None = None) -> int:
    """Pytest's exit status. Where there is no GPU, all tests are skipped."""
    chosen = options(arguments)
    return int(pytest.main([*ARGUMENTS, str(ROOT / "tests/gpu")], plugins=[Watcher(chosen.report)]))


if __name__ == "__main__":
    sys.exit(main())
