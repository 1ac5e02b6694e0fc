"""Where templates are stored and how much space they may take: environment variables, defaults.

Standard library only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_VARIABLES = {
    "disk": "TESSERA_TEMPLATE_DISK",
    "memory": "TESSERA_TEMPLATE_MEMORY",
    "size": "TESSERA_TEMPLATE_SIZE",
    "device": "TESSERA_TEMPLATE_DEVICE",
}
FOLDER_VARIABLE = "TESSERA_TEMPLATES"


@dataclass(frozen=True)
class TemplateSettings:
    """Folder and budgets.

    Attributes:
        folder: the store's folder.
        disk: bytes that all recordings may take.
        memory: bytes that recorded steps may take in host memory.
        size: bytes that one recording may take.
        device: bytes that recorded steps may take on a GPU.
    """

    folder: Path
    disk: int = 20 * 10**9
    memory: int = 4 * 10**9
    size: int = 10 * 10**9
    device: int = 4 * 10**9

    @classmethod
    def from_environment(cls) -> TemplateSettings:
        """Read `TESSERA_TEMPLATES` and the `TESSERA_TEMPLATE_*` variables; others keep defaults."""
        folder = Path(os.environ.get(FOLDER_VARIABLE) or default_folder())
        texts = {name: os.environ.get(variable) for name, variable in _VARIABLES.items()}
        return cls(folder, **{name: int(text) for name, text in texts.items() if text})

    def to_environment(self) -> dict[str, str]:
        """The environment variables from which `from_environment` reads these settings."""
        sizes = {variable: str(getattr(self, name)) for name, variable in _VARIABLES.items()}
        return {FOLDER_VARIABLE: str(self.folder), **sizes}


def default_folder() -> Path:
    """The store's folder in the user's cache: `$XDG_CACHE_HOME` or `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tessera" / "templates"
