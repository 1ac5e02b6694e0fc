"""What an operator chooses for one server.

`tessera-serve` makes it of its options and hands it on as environment variables; each model process
reads these once, when it starts. Knows the variables' names, defaults and forms. Does not know
bundles: others say whether a value fits the one that is served. Standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter
from pathlib import Path
from typing import Any

from tessera.errors import BundleError, brief
from tessera.shared.processes import SHARED, identity, namespace

BOARD_PREFIX = "tessera-board-"


class EngineKind(StrEnum):
    """What runs a bundle's graphs."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    TORCH = "torch"


class LoraPath(StrEnum):
    """How requests get their LoRAs: merged into the engines in turns, by the low-rank side path all
    at once wherever it can take them, or by whichever costs less.
    """

    AUTO = "auto"
    REFIT = "refit"
    SIDE = "side"


def default_templates() -> Path:
    """The folder of templates in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tessera" / "templates"


def default_board() -> Path:
    """A board named after the server process.

    Model processes are children of tritonserver, so they agree on it without being told. Start time
    and PID namespace keep two servers apart whose process ids are the same (containers that share
    /dev/shm, reused ids).
    """
    server = identity(os.getppid()).replace(":", "-")
    return SHARED / f"{BOARD_PREFIX}{namespace()}-{server}"


@dataclass(frozen=True)
class TemplateSettings:
    """Where templates are kept, and how much room they may take.

    Attributes:
        folder: of the store.
        disk: bytes of all recordings.
        memory: bytes of the recorded steps that are held in memory.
        size: bytes of one recording.
        device: bytes of the recorded steps that are held on a GPU.
    """

    folder: Path = field(default_factory=default_templates)
    disk: int = 20 * 10**9
    memory: int = 4 * 10**9
    size: int = 10 * 10**9
    device: int = 4 * 10**9


@dataclass(frozen=True)
class AdapterSettings:
    """Where LoRAs are, how much memory they may take, and how they get into the UNet.

    Attributes:
        folders: of LoRAs beside the bundle's own.
        memory: bytes that each model process may keep of parsed LoRAs, and again of weights merged
            with them.
        path: refits, side path, or whichever costs less.
    """

    folders: tuple[Path, ...] = ()
    memory: int = 2 * 10**9
    path: LoraPath = LoraPath.AUTO


@dataclass(frozen=True)
class ControlSettings:
    """How much memory ControlNets may take, and which stay loaded.

    Attributes:
        memory: bytes that the weights of loaded ControlNets may take.
        pinned: names of those that are loaded with the server and never unloaded.
    """

    memory: int = 16 * 10**9
    pinned: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServerSettings:
    """Everything that is chosen for one server.

    Attributes:
        bundle: folder of the bundle to serve.
        threads: threads of one engine call on the CPU; 0 is one per core.
        engine: what runs the graphs.
        torch_compile: whether torch engines compile the UNet.
        board: file of the job board.
        trace: file to write spans to; `None` writes none.
        templates, adapters, controls: see there.
    """

    bundle: Path
    threads: int = 0
    engine: EngineKind = EngineKind.AUTO
    torch_compile: bool = False
    board: Path = field(default_factory=default_board)
    trace: Path | None = None
    templates: TemplateSettings = field(default_factory=TemplateSettings)
    adapters: AdapterSettings = AdapterSettings()
    controls: ControlSettings = ControlSettings()

    @property
    def control_table(self) -> Path:
        """Where the server's processes keep which ControlNets are loaded: beside the board."""
        return Path(f"{self.board}.controls")

    @property
    def activity(self) -> Path:
        """The lock by which a server's processes tell that they answer a request."""
        return Path(f"{self.board}.activity")

    @property
    def costs(self) -> Path:
        """Where the server keeps what it has measured of its steps: beside the board."""
        return Path(f"{self.board}.costs")

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] | None = None) -> ServerSettings:
        """What the variables say, of this process unless given. One that is empty or not set leaves
        the default.

        Raises:
            BundleError: a variable's value is not accepted, or none names the bundle.
        """
        given = os.environ if variables is None else variables
        values: dict[str, dict[str, Any]] = {group: {} for group in ("", *_GROUPS)}
        for variable, (path, form) in _VARIABLES.items():
            if text := given.get(variable):
                group, _, name = path.rpartition(".")
                values[group][name] = form.parse(variable, text)
        if "bundle" not in values[""]:
            raise BundleError(f"{_BUNDLE} is not set; set it to the folder of a bundle")
        groups = {name: kind(**values[name]) for name, kind in _GROUPS.items()}
        return cls(**values[""], **groups)

    def to_environment(self) -> dict[str, str]:
        """The variables that say the same.

        Raises:
            BundleError: a value has no form that a variable can hold.
        """
        values = {name: (attrgetter(path)(self), form) for name, (path, form) in _VARIABLES.items()}
        return {n: form.text(n, value) for n, (value, form) in values.items() if value is not None}


@dataclass(frozen=True)
class _Form:
    """How a variable holds a value: `read` raises `ValueError` for what is not `accepted`."""

    accepted: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str

    def parse(self, variable: str, text: str) -> Any:
        """The value that a variable's text stands for."""
        try:
            return self.read(text)
        except ValueError:
            raise BundleError(f"{variable} is {brief(text)}; accepted: {self.accepted}") from None

    def text(self, variable: str, value: Any) -> str:
        """Inverse of `parse`."""
        text = self.write(value)
        if text and self.parse(variable, text) != value:
            raise BundleError(f"{variable} cannot hold {brief(text)}; accepted: {self.accepted}")
        return text


def compiles() -> bool:
    """Whether torch engines of this process compile their networks; for what has to know it while
    it is imported.
    """
    return os.environ.get(_COMPILE) == "1"


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def _switch(text: str) -> bool:
    return bool(("0", "1").index(text))


def _listed(separator: str, element: Callable[[str], Any], accepted: str) -> _Form:
    return _Form(
        accepted,
        lambda text: tuple(element(part) for part in text.split(separator) if part),
        lambda values: separator.join(map(str, values)),
    )


_COUNT = _Form("an integer from 0", _number)
_BYTES = _Form("a number of bytes, an integer from 0", _number)
_PATH = _Form("a path", Path)
_BUNDLE = "TESSERA_BUNDLE"
_COMPILE = "TESSERA_TORCH_COMPILE"
_VARIABLES: dict[str, tuple[str, _Form]] = {
    _BUNDLE: ("bundle", _PATH),
    "TESSERA_THREADS": ("threads", _COUNT),
    "TESSERA_ENGINE": ("engine", _Form(", ".join(EngineKind), EngineKind)),
    _COMPILE: ("torch_compile", _Form("0, 1", _switch, lambda on: str(int(on)))),
    "TESSERA_BOARD": ("board", _PATH),
    "TESSERA_TRACE": ("trace", _PATH),
    "TESSERA_TEMPLATES": ("templates.folder", _PATH),
    "TESSERA_TEMPLATE_DISK": ("templates.disk", _BYTES),
    "TESSERA_TEMPLATE_MEMORY": ("templates.memory", _BYTES),
    "TESSERA_TEMPLATE_SIZE": ("templates.size", _BYTES),
    "TESSERA_TEMPLATE_DEVICE": ("templates.device", _BYTES),
    "TESSERA_ADAPTERS": (
        "adapters.folders",
        _listed(os.pathsep, Path, f"folders with {os.pathsep} between, and none in their names"),
    ),
    "TESSERA_ADAPTER_MEMORY": ("adapters.memory", _BYTES),
    "TESSERA_LORA_PATH": ("adapters.path", _Form(", ".join(LoraPath), LoraPath)),
    "TESSERA_CONTROL_MEMORY": ("controls.memory", _BYTES),
    "TESSERA_CONTROL_PINNED": ("controls.pinned", _listed(",", str, "names with , between")),
}
"""By variable: the setting's place in `ServerSettings`, and how it is written."""

_GROUPS: dict[str, Callable[..., Any]] = {
    "templates": TemplateSettings,
    "adapters": AdapterSettings,
    "controls": ControlSettings,
}
