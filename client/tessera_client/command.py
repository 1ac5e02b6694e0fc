"""`tessera`, also where the library alone is installed."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command, or say what it needs."""
    try:
        from tessera_client import cli
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        needs = f'needs {error.name}: pip install ".[client]" in a checkout of Tessera'
        sys.exit(f"tessera: the command {needs}")
    cli.main()
