"""`tessera info`: what a server can do."""

from __future__ import annotations

import json
from collections.abc import Mapping

import typer

from tessera.terminal.console import new_table
from tessera_client.terminal import FAILURES, LOCAL, AsJson, Timeout, Url, fail, open_client, output


def info(url: Url = LOCAL, timeout: Timeout = 30.0, as_json: AsJson = False) -> None:
    """Show what the server can do: defaults, limits, schedulers, LoRAs, ControlNets, jobs."""
    try:
        with open_client(url, timeout) as client:
            found = client.capabilities()
    except FAILURES as error:
        fail(error)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
        return
    bundle, busy, table = found.bundle, found.busy, new_table("", "")
    usable = [each for each in found.loras if not each.problem]
    table.add_row("bundle", f"{bundle.name} ({bundle.variant})")
    table.add_row("defaults", _pairs(bundle.defaults))
    table.add_row("limits", _pairs(found.to_dict()["limits"]))
    table.add_row("schedulers", ", ".join(bundle.schedulers))
    table.add_row("loras", ", ".join(each.name for each in usable if not each.word) or "none")
    table.add_row("words", ", ".join(each.word for each in usable if each.word) or "none")
    table.add_row("controlnets", ", ".join(bundle.controlnets) or "none")
    table.add_row("sparse edits", "yes" if bundle.sparse else "no")
    if busy:
        counts = f"{busy.running} running, {busy.waiting} waiting, {busy.slots} slots"
        table.add_row("jobs", counts)
    output.print(table)


def _pairs(content: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in content.items())
