"""Where LoRAs are beside the bundle's own, and how much memory they may take; how `tessera-serve`
tells the model processes. Standard library only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

FOLDERS_VARIABLE = "TESSERA_ADAPTERS"
MEMORY_VARIABLE = "TESSERA_ADAPTER_MEMORY"


@dataclass(frozen=True)
class AdapterSettings:
    """What an operator may choose.

    Attributes:
        folders: of further LoRAs.
        memory: bytes that each model process may keep of parsed LoRAs, and again of weights merged
            with them.
    """

    folders: tuple[Path, ...] = ()
    memory: int = 2 * 10**9

    @classmethod
    def from_environment(cls) -> AdapterSettings:
        """What `to_environment` has set, and the defaults of what it has not."""
        folders = os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)
        memory = os.environ.get(MEMORY_VARIABLE)
        return cls(
            tuple(Path(folder) for folder in folders if folder),
            cls.memory if memory is None else int(memory),
        )

    def to_environment(self) -> dict[str, str]:
        """Variables for the model processes."""
        folders = os.pathsep.join(str(folder.resolve()) for folder in self.folders)
        return {FOLDERS_VARIABLE: folders, MEMORY_VARIABLE: str(self.memory)}
