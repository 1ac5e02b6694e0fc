"""Add-ons of a bundle: ControlNets, which are exported with the checkpoint, and LoRA files.

LoRA files are copied unchanged, those of PEFT with the configuration beside them. The manifest does
not list them, since files may be added to and removed from a bundle's folder `adapters` at any
time.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tessera.adapters.library import PEFT_CONFIG, PEFT_MODEL
from tessera.engines.places import NETWORKS, read_places
from tessera.errors import BundleError, TesseraError
from tessera.manifest import ADAPTERS, HINT
from tessera_build.checkpoint import first_line, refuse_pickle

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_OF_LORAS = re.compile(r"lora|hada_|lokr_|ia3_|\.on_input$|\.diff(_b)?$|\.[wb]_norm$")


@dataclass(frozen=True)
class AddOns:
    """Paths of ControlNets and LoRAs to add to a bundle.

    Attributes:
        controlnets: ControlNets by name: a folder with `config.json` and safetensors weights, or a
            single safetensors file.
        loras: safetensors files.
        placements: where networks run, as `NAME=PLACE`. Those left out run where there is room.
    """

    controlnets: Mapping[str, Path] = field(default_factory=dict)
    loras: Sequence[Path] = ()
    placements: Sequence[str] = ()

    @property
    def places(self) -> dict[str, str]:
        """`placements` by name.

        Raises:
            BundleError: a placement has another form or names an unknown network.
        """
        try:
            read_places(self.placements, self.controlnets)
        except TesseraError as error:
            raise BundleError(str(error)) from None
        pairs = (placement.partition("=") for placement in self.placements)
        return {name: place for name, _, place in pairs}

    def check(self) -> None:
        """Check names and files before expensive work begins.

        Raises:
            BundleError: a name or a file is not accepted.
        """
        for name, path in self.controlnets.items():
            if not _NAME.fullmatch(name) or name.endswith(HINT) or name in NETWORKS:
                raise BundleError(
                    f"ControlNet name is {name!r}; accepted: letters, digits, _ and -, not ending "
                    f"in {HINT}, and not {' or '.join(NETWORKS)}"
                )
            _check_controlnet(name, path)
        self.places  # noqa: B018 - raises if a placement is wrong
        names = [str((_place(path) / path.name).with_suffix("")) for path in self.loras]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            what = "one of their folders" if "/" in duplicates[0] else "one of them"
            raise BundleError(f"two LoRA files are called {duplicates[0]}; rename {what}")
        for path in self.loras:
            _check_lora(path)


def read_controlnets(pairs: Sequence[str]) -> dict[str, Path]:
    """Parse `NAME=PATH` arguments of the command line.

    Raises:
        BundleError: an argument has another form, or a name is given twice.
    """
    controlnets: dict[str, Path] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise BundleError(f"--controlnet is {pair!r}; accepted: NAME=PATH")
        if name in controlnets:
            raise BundleError(f"--controlnet {name} is given twice; give each a different name")
        controlnets[name] = Path(path)
    return controlnets


def install_loras(out: Path, loras: Sequence[Path]) -> None:
    """Copy LoRA files into a bundle, each atomically. One of PEFT's and its configuration go into
    a folder called as its own is.

    Raises:
        BundleError: the disk is full or the folder cannot be written.
    """
    folder = out / ADAPTERS
    try:
        folder.mkdir(exist_ok=True)
        for path in loras:
            inner = folder / _place(path)
            inner.mkdir(exist_ok=True)
            if _has_config(path):
                _copy(path.with_name(PEFT_CONFIG), inner)
            _copy(path, inner)
    except OSError as error:
        raise BundleError(f"{folder} could not be written: {error.strerror or error}") from error


def _copy(path: Path, folder: Path) -> None:
    partial = folder / f".{path.name}.{os.getpid()}.partial"  # others may do the same now
    try:
        shutil.copyfile(path, partial)
        partial.replace(folder / path.name)
    finally:
        partial.unlink(missing_ok=True)


def _has_config(lora: Path) -> bool:
    return lora.name == PEFT_MODEL and lora.with_name(PEFT_CONFIG).is_file()


def _place(lora: Path) -> Path:
    """The folder of a LoRA in the bundle's folder: all of PEFT's have the same name."""
    return Path(lora.parent.resolve().name.lstrip(".") if _has_config(lora) else "")


def keep_adapters(old: Path, new: Path) -> None:
    """Copy the adapters of a bundle into the one that takes its place: their folders, too, and what
    lies beside them.

    Raises:
        BundleError: the disk is full or a folder cannot be written.
    """
    if not (old / ADAPTERS).is_dir():
        return
    try:
        shutil.copytree(old / ADAPTERS, new / ADAPTERS, symlinks=True, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise BundleError(f"{new / ADAPTERS} could not be written: {error}") from error


def _check_controlnet(name: str, path: Path) -> None:
    refuse_pickle(path)
    if not path.exists():
        raise BundleError(
            f"ControlNet {name}: {path} does not exist; accepted: a diffusers folder or a "
            ".safetensors file"
        )
    if path.is_file():
        if path.suffix != ".safetensors":
            raise BundleError(f"ControlNet {name}: {path} is not a safetensors file")
        return
    if not (path / "config.json").exists():
        raise BundleError(f"ControlNet {name}: {path} has no config.json")
    if not list(path.glob("*.safetensors")):
        raise BundleError(
            f"ControlNet {name}: {path} has no safetensors weights; accepted: *.safetensors"
        )


def _check_lora(path: Path) -> None:
    refuse_pickle(path)
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        raise BundleError(f"LoRA {path} is not a safetensors file; accepted: *.safetensors")
    try:
        with safe_open(path, framework="pt") as weights:
            names = list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise BundleError(f"LoRA {path} cannot be read: {first_line(error)}") from error
    if not any(_OF_LORAS.search(name) for name in names):
        raise BundleError(f"{path} is not a LoRA: none of its {len(names)} tensors is called so")
