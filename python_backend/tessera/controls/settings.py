"""How much room ControlNets may take and which stay loaded; how `tessera-serve` tells the model
processes. Standard library only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

MEMORY_VARIABLE = "TESSERA_CONTROL_MEMORY"
PINNED_VARIABLE = "TESSERA_CONTROL_PINNED"


@dataclass(frozen=True)
class ControlSettings:
    """What an operator may choose.

    Attributes:
        memory: bytes that the weights of loaded ControlNets may take.
        pinned: names of those that are loaded with the server and never unloaded.
    """

    memory: int = 16 * 10**9
    pinned: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls) -> ControlSettings:
        """What `to_environment` has set, and the defaults of what it has not."""
        memory = os.environ.get(MEMORY_VARIABLE)
        pinned = os.environ.get(PINNED_VARIABLE, "").split(",")
        return cls(
            cls.memory if memory is None else int(memory), tuple(name for name in pinned if name)
        )

    def to_environment(self) -> dict[str, str]:
        """Variables for the model processes."""
        return {MEMORY_VARIABLE: str(self.memory), PINNED_VARIABLE: ",".join(self.pinned)}
