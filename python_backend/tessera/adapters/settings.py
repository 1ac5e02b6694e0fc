"""Where LoRAs outside the bundle are, how much memory they may take, and which path they use.

`tessera-serve` passes these settings to the model processes in environment variables. Standard
library only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tessera.errors import BundleError, listing

FOLDERS_VARIABLE = "TESSERA_ADAPTERS"
MEMORY_VARIABLE = "TESSERA_ADAPTER_MEMORY"
PATH_VARIABLE = "TESSERA_LORA_PATH"
PATHS = ("auto", "refit", "side")
"""How requests get their LoRAs. `refit` merges them into the engines in turns. `side` uses the
low-rank side path for every request that fits it. `auto` chooses the cheaper path."""


@dataclass(frozen=True)
class AdapterSettings:
    """An operator's settings for LoRAs.

    Attributes:
        folders: folders of LoRAs in addition to the bundle's.
        memory: bytes of parsed adapters that each model process may keep, and again for merged
            weights.
        path: one of `PATHS`.
    """

    folders: tuple[Path, ...] = ()
    memory: int = 2 * 10**9
    path: str = PATHS[0]

    @classmethod
    def from_environment(cls) -> AdapterSettings:
        """Read the variables that `to_environment` sets. Missing ones keep their defaults.

        Raises:
            BundleError: the path is unknown.
        """
        folders = os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)
        memory = os.environ.get(MEMORY_VARIABLE)
        path = os.environ.get(PATH_VARIABLE) or cls.path
        if path not in PATHS:
            raise BundleError(f"{PATH_VARIABLE} is {path!r}; accepted: {listing(PATHS)}")
        return cls(
            tuple(Path(folder) for folder in folders if folder),
            cls.memory if memory is None else int(memory),
            path,
        )

    def to_environment(self) -> dict[str, str]:
        """Environment variables for the model processes."""
        folders = os.pathsep.join(str(folder.resolve()) for folder in self.folders)
        return {
            FOLDERS_VARIABLE: folders,
            MEMORY_VARIABLE: str(self.memory),
            PATH_VARIABLE: self.path,
        }
