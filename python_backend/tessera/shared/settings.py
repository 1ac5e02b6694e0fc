"""What an operator chooses for one server.

`tessera-serve` makes it of its options and hands it on as environment variables; each model process
reads these once, when it starts. Knows the variables' names, defaults and forms. Does not know
bundles: others say whether a value fits the one that is served. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter
from pathlib import Path
from typing import Any

from tessera.contract.words import EDIT_QUALITIES, EditQuality
from tessera.errors import BundleError
from tessera.shared.machine import memory_share
from tessera.shared.processes import SHARED, identity, namespace
from tessera.shared.request_log import LogFormat
from tessera.shared.variables import BYTES, COUNT, PATH, SWITCH, Form, listed

BOARD_PREFIX = "tessera-board-"
AUTO, CPU, GPU = "auto", "cpu", "gpu:"
"""Forms of a place; a GPU's number follows."""
_PLACE_TEXT = re.compile(rf"{AUTO}|{CPU}|{GPU}\d+")


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


def read_place(text: str) -> str:
    """A place: `auto`, `cpu`, or a GPU such as `gpu:1`.

    Raises:
        ValueError: the text is none.
    """
    if not _PLACE_TEXT.fullmatch(text):
        raise ValueError(text)
    return text


@dataclass(frozen=True)
class PlaceSettings:
    """Where networks run.

    Attributes:
        unet: one place for each engine of the UNet. `cpu` may occur several times, each with its
            share of the threads. `auto` alone means every GPU, or the CPU where there is none.
        vae: of VAE encoder and decoder; `auto` means the first GPU, or the CPU.
        text_encoders: likewise.
    """

    unet: tuple[str, ...] = (AUTO,)
    vae: str = AUTO
    text_encoders: str = AUTO


AUTOMATIC = PlaceSettings()


@dataclass(frozen=True)
class TemplateSettings:
    """Where templates are kept, and how much room they may take.

    Attributes:
        folder: of the store.
        disk: bytes of all recordings.
        memory: bytes of the recorded steps that are held in memory.
        size: bytes of one recording; `None` for what fits into memory, but at most 10 GB.
        device: bytes of the recorded steps that are held on a GPU; `None` for a share of it.
    """

    folder: Path = field(default_factory=default_templates)
    disk: int = 20 * 10**9
    memory: int = field(default_factory=memory_share)
    size: int | None = None
    device: int | None = None

    @property
    def largest(self) -> int:
        """Bytes that one recording may take. One that does not fit into memory is read again and
        again.
        """
        return min(10**10, self.memory) if self.size is None else self.size


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
        slots: requests that take part in a step; 0 for as many as pay on the UNet's devices.
        max_steps: steps that a request may ask for; 0 for as many as the bundle and sampler take.
        max_queue: jobs that may wait for a slot; others are refused at once.
        edit_quality: of edits that name none.
        board: file of the job board.
        trace: file to write spans to; `None` writes none.
        log_format, log_prompts: whether the log has requests, and whether their prompts, too.
        places, templates, adapters, controls: see there.
    """

    bundle: Path
    threads: int = 0
    engine: EngineKind = EngineKind.AUTO
    torch_compile: bool = False
    slots: int = 0
    max_steps: int = 0
    max_queue: int = 512
    edit_quality: EditQuality = EditQuality.BALANCED
    board: Path = field(default_factory=default_board)
    trace: Path | None = None
    log_format: LogFormat = LogFormat.TEXT
    log_prompts: bool = False
    places: PlaceSettings = AUTOMATIC
    templates: TemplateSettings = field(default_factory=TemplateSettings)
    adapters: AdapterSettings = AdapterSettings()
    controls: ControlSettings = ControlSettings()

    @property
    def control_table(self) -> Path:
        """Where the server's processes keep which ControlNets are loaded: beside the board."""
        return Path(f"{self.board}.controls")

    @property
    def key(self) -> Path:
        """Where the key is by which the server knows its own requests: beside the board."""
        return Path(f"{self.board}.key")

    @property
    def previews(self) -> Path:
        """Where the latents of watched jobs are: beside the board."""
        return Path(f"{self.board}.previews")

    @property
    def activity(self) -> Path:
        """The lock by which a server's processes tell that they answer a request."""
        return Path(f"{self.board}.activity")

    @property
    def load(self) -> Path:
        """Where `denoise` keeps what it has to do, and what it has for that: beside the board."""
        return Path(f"{self.board}.load")

    @property
    def worker(self) -> str:
        """Id of this running server among all others."""
        return hashlib.sha256(f"{platform.node()} {self.board}".encode()).hexdigest()[:12]

    @property
    def checked(self) -> Path:
        """Where `tessera-serve` writes which files of the bundle it has compared with the manifest:
        beside the board.
        """
        return Path(f"{self.board}.checked")

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


def compiles() -> bool:
    """Whether torch engines of this process compile their networks; for what has to know it while
    it is imported.
    """
    return os.environ.get(_COMPILE) == "1"


_PLACE = Form("auto, cpu or gpu:N", read_place)
_BUNDLE = "TESSERA_BUNDLE"
_COMPILE = "TESSERA_TORCH_COMPILE"
_VARIABLES: dict[str, tuple[str, Form]] = {
    _BUNDLE: ("bundle", PATH),
    "TESSERA_THREADS": ("threads", COUNT),
    "TESSERA_ENGINE": ("engine", Form(", ".join(EngineKind), EngineKind)),
    _COMPILE: ("torch_compile", SWITCH),
    "TESSERA_SLOTS": ("slots", COUNT),
    "TESSERA_MAX_STEPS": ("max_steps", COUNT),
    "TESSERA_MAX_QUEUE": ("max_queue", COUNT),
    "TESSERA_EDIT_QUALITY": (
        "edit_quality",
        Form(", ".join(EDIT_QUALITIES), EditQuality),
    ),
    "TESSERA_BOARD": ("board", PATH),
    "TESSERA_TRACE": ("trace", PATH),
    "TESSERA_LOG_FORMAT": ("log_format", Form(", ".join(LogFormat), LogFormat)),
    "TESSERA_LOG_PROMPTS": ("log_prompts", SWITCH),
    "TESSERA_PLACE_UNET": (
        "places.unet",
        listed(",", read_place, "auto, cpu or gpu:N, or several with , between"),
    ),
    "TESSERA_PLACE_VAE": ("places.vae", _PLACE),
    "TESSERA_PLACE_TEXT_ENCODERS": ("places.text_encoders", _PLACE),
    "TESSERA_TEMPLATES": ("templates.folder", PATH),
    "TESSERA_TEMPLATE_DISK": ("templates.disk", BYTES),
    "TESSERA_TEMPLATE_MEMORY": ("templates.memory", BYTES),
    "TESSERA_TEMPLATE_SIZE": ("templates.size", BYTES),
    "TESSERA_TEMPLATE_DEVICE": ("templates.device", BYTES),
    "TESSERA_ADAPTERS": (
        "adapters.folders",
        listed(os.pathsep, Path, f"folders with {os.pathsep} between, and none in their names"),
    ),
    "TESSERA_ADAPTER_MEMORY": ("adapters.memory", BYTES),
    "TESSERA_LORA_PATH": ("adapters.path", Form(", ".join(LoraPath), LoraPath)),
    "TESSERA_CONTROL_MEMORY": ("controls.memory", BYTES),
    "TESSERA_CONTROL_PINNED": ("controls.pinned", listed(",", str, "names with , between")),
}
"""By variable: the setting's place in `ServerSettings`, and how it is written."""

_GROUPS: dict[str, Callable[..., Any]] = {
    "places": PlaceSettings,
    "templates": TemplateSettings,
    "adapters": AdapterSettings,
    "controls": ControlSettings,
}
