"""`tessera templates`: record, list and evict the pictures that edits start from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tessera.contract import Scheduler
from tessera.terminal.console import new_table
from tessera_client.cli_adapters import Loras, read_loras
from tessera_client.cli_controls import Controls, read_controls
from tessera_client.terminal import (
    FAILURES,
    LOCAL,
    AsJson,
    ClipSkip,
    Syntax,
    Timeout,
    Url,
    console,
    fail,
    open_client,
    output,
)

app = typer.Typer(
    help="Record, list and evict the pictures that edits start from.", no_args_is_help=True
)


@app.command()
def add(
    image: Annotated[Path, typer.Argument(help="Picture to record.", exists=True, dir_okay=False)],
    steps: Annotated[int | None, typer.Option(help="Denoising steps of its edits.")] = None,
    scheduler: Annotated[Scheduler | None, typer.Option(help="Sampler of its edits.")] = None,
    copies: Annotated[
        int | None, typer.Option(help="Workers of a fleet that are to have it.", min=1)
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt of its edits.")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="Negative prompt of its edits.")
    ] = None,
    syntax: Syntax = None,
    clip_skip: ClipSkip = None,
    lora: Loras = None,
    control: Controls = None,
    url: Url = LOCAL,
    timeout: Timeout = 600.0,
    as_json: AsJson = False,
) -> None:
    """Record a picture's activations, so that its edits are fast from the first on."""
    try:
        with (
            open_client(url, timeout) as client,
            console.doing("recording ..."),
        ):
            done = client.register_template(
                image,
                steps=steps,
                scheduler=scheduler,
                copies=copies,
                prompt=prompt,
                negative_prompt=negative_prompt,
                prompt_syntax=syntax,
                clip_skip=clip_skip,
                loras=read_loras(lora),
                controls=read_controls(control),
            )
    except FAILURES as error:
        fail(error)
    if as_json:
        typer.echo(json.dumps(vars(done)))
        return
    how = f"recorded in {done.seconds:.1f} s" if done.recorded else "was recorded before"
    output.say(
        f"{done.template}  {how}: {done.steps} steps of {done.scheduler}, "
        f"{done.bytes / 1e6:.0f} MB ({done.storage})"
        + (f", with prompt {done.prompt}" if done.prompt else "")
        + (f", with {_named(done.loras)}" if done.loras else "")
        + (f", with {_guided_by(done.controls)}" if done.controls else "")
        + (f", on {done.copies} workers" if done.copies > 1 else "")
    )


@app.command("list")
def list_all(url: Url = LOCAL, as_json: AsJson = False) -> None:
    """List what is known and recorded, and how full disk and memory are."""
    try:
        with open_client(url) as client:
            found = client.templates()
    except FAILURES as error:
        fail(error)
    if as_json:
        typer.echo(json.dumps(found))
        return
    names = ("template", "size", "steps", "scheduler", "prompt", "add-ons", "kept as", "MB")
    table = new_table(*names, numbers=["steps", "MB"])
    for template in found["templates"]:
        size = f"{template['width']} x {template['height']}"
        for row in template["recordings"] or [None]:
            table.add_row(template["template"], size, *_cells(row))
    output.print(table)
    for name in ("disk", "memory"):
        tier = found[name]
        output.say(f"{name}: {tier['bytes'] / 1e6:.0f} of {tier['budget'] / 1e6:.0f} MB")
    if found["memory"]["hit_rate"] is not None:
        output.say(f"reads that memory answered: {100 * found['memory']['hit_rate']:.1f} %")


@app.command()
def evict(
    template: Annotated[str, typer.Argument(help="Its id.")],
    url: Url = LOCAL,
    as_json: AsJson = False,
) -> None:
    """Remove a picture and what has been recorded of it."""
    try:
        with open_client(url) as client:
            freed = client.evict_template(template)
    except FAILURES as error:
        fail(error)
    if as_json:
        typer.echo(json.dumps({"template": template, "bytes": freed}))
    else:
        output.say(f"{template}  evicted, {freed / 1e6:.0f} MB free")


def _cells(row: dict[str, Any] | None) -> list[str]:
    if row is None:
        return ["", "", "", "", "not recorded", ""]
    megabytes = f"{row['bytes'] / 1e6:.1f}"
    prompt = row.get("prompt") or "empty"
    addons = filter(None, (_named(row.get("loras", [])), _guided_by(row.get("controls", []))))
    made = [prompt, ", ".join(addons) or "none"]
    return [str(row["steps"]), row["scheduler"], *made, row["storage"], megabytes]


def _named(loras: Sequence[Mapping[str, Any]]) -> str:
    """LoRAs as `--lora` has them."""
    return ", ".join(f"{each['name']}:{each['weight']:g}" for each in loras)


def _guided_by(controls: Sequence[Mapping[str, Any]]) -> str:
    """ControlNets with their scales."""
    return ", ".join(f"ControlNet {each['name']}:{each['scale']:g}" for each in controls)
