"""Where templates are kept and how much room they may take: environment variables, with defaults.

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
        folder: of the store.
        disk: bytes of all recordings.
        memory: bytes of the recorded steps that are held in memory.
        size: bytes of one recording.
        device: bytes of the recorded steps that are held on a GPU.
    """

    folder: Path
    disk: int = 20 * 10**9
    memory: int = 4 * 10**9
    size: int = 10 * 10**9
    device: int = 4 * 10**9

    @classmethod
    def from_environment(cls) -> TemplateSettings:
        """As `TESSERA_TEMPLATES` and its fellows say."""
        folder = Path(os.environ.get(FOLDER_VARIABLE) or default_folder())
        given = {name: os.environ.get(variable) for name, variable in _VARIABLES.items()}
        return cls(folder, **{name: int(text) for name, text in given.items() if text})

    def to_environment(self) -> dict[str, str]:
        """The variables that say the same."""
        sizes = {variable: str(getattr(self, name)) for name, variable in _VARIABLES.items()}
        return {FOLDER_VARIABLE: str(self.folder), **sizes}


def default_folder() -> Path:
    """The user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tessera" / "templates"
