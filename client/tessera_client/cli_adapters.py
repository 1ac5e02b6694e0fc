"""`tessera adapters`, and the option that names LoRAs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from tessera.terminal.console import new_table
from tessera_client.messages import Lora
from tessera_client.terminal import (
    ADDONS,
    FAILURES,
    LOCAL,
    AsJson,
    Timeout,
    Url,
    fail,
    open_client,
    option,
    output,
)

app = typer.Typer(help="List LoRAs.", no_args_is_help=True)

Loras = Annotated[
    list[str] | None,
    option(
        ADDONS,
        "--lora",
        metavar="NAME[:WEIGHT[:WEIGHT]]",
        help="Apply a LoRA with a weight (1), and another in the text encoders (the same) "
        "(repeatable). For a name with a colon: "
        '{"name": NAME, "weight": WEIGHT}.',
    ),
]


@app.callback()
def _group() -> None:
    """Keeps `list` a command of its own."""


@app.command("list")
def list_all(url: Url = LOCAL, timeout: Timeout = 300.0, as_json: AsJson = False) -> None:
    """List the server's LoRAs, and why one cannot be used."""
    try:
        with open_client(url, timeout) as client:
            found = client.adapters()
    except FAILURES as error:
        fail(error)
    if as_json:
        for adapter in found:
            typer.echo(json.dumps(dataclasses.asdict(adapter)))
        return
    table = new_table(
        "name", "kinds", "rank", "targets", "MB", "digest", "layout", "for", numbers=["MB"]
    )
    for adapter in found:
        low, high = adapter.ranks or (0, 0)
        table.add_row(
            adapter.name,
            f"{', '.join(adapter.kinds)} {adapter.word or ''}".strip(),
            (str(low) if low == high else f"{low}-{high}") if adapter.ranks else "",
            ", ".join(f"{part} {count}" for part, count in adapter.targets.items()),
            f"{adapter.bytes / 1e6:.1f}",
            adapter.digest or "",
            adapter.layout or "",
            f"nothing: it {adapter.problem}"
            if adapter.problem
            else adapter.family or "(not read yet)",
        )
    output.print(table)
    for adapter in found:
        for rule in adapter.skipped:
            output.print(f"{adapter.name}: skipped {rule}", markup=False, highlight=False)


def read_loras(texts: Sequence[str] | None) -> list[Lora | dict[str, Any]]:
    """What `--lora` stands for. A name with colons is given in JSON, as an element of LORAS.

    Raises:
        ValueError: one is not of the form NAME[:WEIGHT[:TEXT_WEIGHT]].
    """
    return [_read_json(text) or _read(text) for text in texts or ()]


def _read_json(text: str) -> dict[str, Any] | None:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def _read(text: str) -> Lora:
    name, *parts = text.split(":")
    weights = [_number(part) for part in parts]
    if not name or len(weights) > 2 or None in weights:
        raise ValueError(
            f"--lora is {text!r}; accepted: NAME[:WEIGHT[:TEXT_WEIGHT]], the weights numbers"
        )
    weight = 1.0 if not weights or weights[0] is None else weights[0]
    return Lora(name, weight, weights[1] if len(weights) == 2 else None)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
