"""Where LoRAs are beside the bundle's own, and how much memory they may take; how `tessera-serve`
tells the model processes. Standard library only.
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
"""How requests get their LoRAs: merged into the engines in turns, by the low-rank side path all at
once wherever it can take them, or by whichever costs less."""


@dataclass(frozen=True)
class AdapterSettings:
    """What an operator may choose.

    Attributes:
        folders: of further LoRAs.
        memory: bytes that each model process may keep of parsed LoRAs, and again of weights merged
            with them.
        path: one of `PATHS`.
    """

    folders: tuple[Path, ...] = ()
    memory: int = 2 * 10**9
    path: str = PATHS[0]

    @classmethod
    def from_environment(cls) -> AdapterSettings:
        """What `to_environment` has set, and the defaults of what it has not.

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
        """Variables for the model processes."""
        folders = os.pathsep.join(str(folder.resolve()) for folder in self.folders)
        return {
            FOLDERS_VARIABLE: folders,
            MEMORY_VARIABLE: str(self.memory),
            PATH_VARIABLE: self.path,
        }
