"""Files of textual inversion: vectors that stand for a word of a prompt (Gal et al. 2022).

They lie in the folders of LoRAs. These forms are read:

- diffusers': one tensor, named like the word (`learned_embeds.safetensors`, `.bin`).
- stable-diffusion-webui's: `string_to_param` in a `.pt`, or the tensor `emb_params`. The word is
  the file's name.
- of XL: `clip_l` and `clip_g`, the vectors of both text encoders, in older files of diffusers'
  scripts `text_encoders_0` and `text_encoders_1`. The word is the file's name.

Pickled files are read with `weights_only`, which runs no code of theirs. Knows no engines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open

from tessera.adapters.library import SUFFIX, AdapterFile, Library
from tessera.codec.words import NO_WORDS, Words

PICKLED = (".pt", ".bin")
LARGEST = 4_000_000
"""Bytes of a file: 75 vectors of XL are less than a megabyte. Larger ones are not looked into."""
_LISTED_S = 1.0
"""How long the folders' list is taken to be up to date."""
_OF_XL = ("clip_l", "clip_g")
_OLDER: dict[str, str] = {"text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}
_OF_OUTPUTS = tuple(f"{name}_out" for name in _OF_XL)
"""OneTrainer's vectors that are added to what a text encoder gives out."""
_UNNAMED = ("emb_params", *_OF_XL)


@dataclass(frozen=True)
class Inversion:
    """A file of textual inversion.

    Attributes:
        file: on disk.
        word: that stands for the vectors.
        vectors: (k, width) for each text encoder; empty if they do not fit.
        problem: why it cannot be used; empty if it can.
    """

    file: AdapterFile
    word: str
    vectors: tuple[torch.Tensor, ...] = ()
    problem: str = ""


class Inversions:
    """The files of textual inversion in some folders, each read once per version.

    Args:
        bundle: folder of the bundle, whose own adapters come first.
        further: folders.
        widths: of the token embeddings of each text encoder. Without any, no file is read.
    """

    def __init__(self, bundle: Path, further: Sequence[Path], widths: Sequence[int]) -> None:
        self._library = Library.of_bundle(bundle, further, (SUFFIX, *PICKLED))
        self._widths = tuple(widths)
        self._read: dict[tuple[Path, tuple[int, ...]], Inversion | None] = {}
        self._words = NO_WORDS
        self._paths: tuple[tuple[str, ...], ...] = ()
        self._listed = -_LISTED_S

    def words(self) -> Words:
        """Those of all files that can be used."""
        if self._widths and time.monotonic() - self._listed > _LISTED_S:
            if self._changed():
                usable = [each for each in self.files() if not each.problem]
                self._words = Words.of({each.word: each.vectors for each in reversed(usable)})
            self._listed = time.monotonic()
        return self._words

    def _changed(self) -> bool:
        """Whether files have come or gone, or one of textual inversion has been written to."""
        before, self._paths = self._paths, self._library.paths()
        if any(now is not then for now, then in zip_longest(self._paths, before)):
            return True
        held = (each.file for each in self._read.values() if each is not None)
        return any(self._library.of(each.name) != each for each in held)

    def files(self) -> list[Inversion]:
        """All that there are now, by name."""
        entries = [e for e in self._library.entries().values() if e.size <= LARGEST]
        current = {(entry.path, entry.version): entry for entry in entries}
        self._read = {
            key: self._read[key] if key in self._read else self._open(entry)
            for key, entry in current.items()
        }
        return [each for each in self._read.values() if each is not None]

    def _open(self, entry: AdapterFile) -> Inversion | None:
        """`None` if it is something else."""
        stem = entry.name.rsplit("/", 1)[-1]
        try:
            tensors = _tensors(entry.path)
        except UnpicklingError:
            problem = "is a pickle with more than tensors in it; accepted: tensors"
            return Inversion(entry, stem, problem=problem)
        except Exception as error:  # pickles and broken files raise whatever they like
            if entry.path.suffix.lower() == SUFFIX:
                return None  # whoever reads LoRAs tells what is wrong with it
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return Inversion(entry, stem, problem=f"cannot be read: {reason[:200]}")
        if tensors is None:
            return None
        named = next((n for n in tensors if n not in (*_UNNAMED, *_OF_OUTPUTS)), stem)
        try:
            vectors = tuple(_fitting(tensors, self._widths))
        except ValueError as error:
            return Inversion(entry, named, problem=str(error))
        return Inversion(entry, named, vectors, problem=entry.problem)


def _tensors(path: Path) -> Mapping[str, torch.Tensor] | None:
    """The vectors of a file by name; `None` if it is no file of textual inversion."""
    if path.suffix.lower() == SUFFIX:
        if _entries(path) > len(_OF_XL + _OF_OUTPUTS):
            return None
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if not _called_so(names):
                return None
            return {_current(name): file.get_tensor(name) for name in names}
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, torch.Tensor):
        return {"emb_params": content}
    if isinstance(content, dict) and "string_to_param" in content:
        return {"emb_params": next(iter(content["string_to_param"].values()))}
    if isinstance(content, dict) and _called_so(list(content)):
        return {_current(name): tensor for name, tensor in content.items()}
    raise ValueError("it is no file of textual inversion")


def _current(name: str) -> str:
    return _OLDER.get(name, name)


def _entries(path: Path) -> int:
    """How many tensors a safetensors file has, without reading its head as JSON: a folder may have
    thousands of LoRAs.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(min(length, LARGEST)).count(b'"data_offsets"')


def _called_so(names: Sequence[Any]) -> bool:
    """Whether these may be the names of vectors: any word, but not of a network's weights."""
    if not all(isinstance(name, str) for name in names):
        return False
    known = {*_OF_XL, *_OF_OUTPUTS, *_OLDER}
    return set(names) <= known or (len(names) == 1 and "." not in names[0])


def _fitting(tensors: Mapping[str, torch.Tensor], widths: Sequence[int]) -> Iterator[torch.Tensor]:
    """Vectors (k, width) for each text encoder.

    Raises:
        ValueError: they are for others; the sentence has no subject.
    """
    if any(name in tensors for name in _OF_OUTPUTS):
        raise ValueError("has vectors for a text encoder's output; accepted: those of words")
    order = [name for name in _OF_XL if name in tensors] or list(tensors)
    found = [tensors[name].detach().float() for name in order]
    found = [each[None] if each.ndim == 1 else each for each in found]
    if any(each.ndim != 2 or not len(each) or not each.isfinite().all() for each in found):
        raise ValueError("has no vectors (k, width) of finite numbers")
    is_widths = [each.shape[1] for each in found]
    if is_widths != list(widths):
        accepted = " and ".join(map(str, widths)) or "none, by the graphs of this older bundle"
        written = " and ".join(map(str, is_widths))
        raise ValueError(f"has vectors of width {written}; accepted: {accepted}")
    if len({len(each) for each in found}) > 1:
        raise ValueError("has not as many vectors for one text encoder as for the other")
    yield from found
