"""The table of config fields in docs/internals/checkpoints.md, made of the code's tables.

python -m tests.samples.audit_page     # writes it
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tessera_build import audit, sampling_audit
from tessera_build.audit import Only, Rule

PAGE = Path(__file__).resolve().parents[2] / "docs" / "internals" / "checkpoints.md"
BEGIN, END = "<!-- fields: begin -->\n", "<!-- fields: end -->\n"
TITLES = {
    audit.MODULE: "applied by its module",
    audit.ELSEWHERE: "applied by Tessera's code",
    sampling_audit.CLASS: "applied by the sampler's class",
    sampling_audit.NAME: "applied, unless the sampler's name says otherwise",
    audit.NOTHING: "without effect on pictures",
}


def tables() -> dict[str, Mapping[str, Rule]]:
    """By what has the fields."""
    return {**audit.FIELDS, "schedulers": sampling_audit.FIELDS}


def table() -> str:
    """The whole, in Markdown."""
    lines = ["| config | rule | fields |", "|---|---|---|"]
    for kind, rules in tables().items():
        for rule, title in TITLES.items():
            names = [f"`{name}`" for name, found in rules.items() if found == rule]
            if names:
                lines.append(f"| {kind} | {title} | {', '.join(names)} |")
        limited = [
            f"`{name}`: {_written(rule)}" for name, rule in rules.items() if isinstance(rule, Only)
        ]
        if limited:
            lines.append(f"| {kind} | accepted, others are rejected | {', '.join(limited)} |")
    return "\n".join(lines) + "\n"


def _written(rule: Only) -> str:
    if int in rule.values:
        return "numbers"
    return " or ".join("nothing" if value is None else str(value) for value in rule.values)


def main() -> None:
    text = PAGE.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(before + BEGIN + table() + END + after)


if __name__ == "__main__":
    main()
