"""How much memory ControlNets may take and which stay loaded. `tessera-serve` passes these settings
to the model processes in environment variables.

Standard library only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

MEMORY_VARIABLE = "TESSERA_CONTROL_MEMORY"
PINNED_VARIABLE = "TESSERA_CONTROL_PINNED"


@dataclass(frozen=True)
class ControlSettings:
    """An operator's settings for ControlNets.

    Attributes:
        memory: bytes that the weights of loaded ControlNets may take.
        pinned: names of ControlNets that are loaded at startup and never unloaded.
    """

    memory: int = 16 * 10**9
    pinned: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls) -> ControlSettings:
        """Read the variables that `to_environment` sets. Missing ones keep their defaults."""
        memory = os.environ.get(MEMORY_VARIABLE)
        pinned = os.environ.get(PINNED_VARIABLE, "").split(",")
        return cls(
            cls.memory if memory is None else int(memory), tuple(name for name in pinned if name)
        )

    def to_environment(self) -> dict[str, str]:
        """Environment variables for the model processes."""
        return {MEMORY_VARIABLE: str(self.memory), PINNED_VARIABLE: ",".join(self.pinned)}
