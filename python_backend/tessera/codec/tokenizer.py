"""Prompts -> token ids, padded and cut to a text encoder's window, as transformers does it.

`import transformers` takes half a second of CPU time, and does no more here than pass prompts on to
the tokenizers library. So `tokenizer.json` is opened with that library, if transformers 5 or newer
wrote the folder, as the builder has it do: then the file holds the whole pipeline that transformers
would use. Any other folder is opened by transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers

_LONGEST = 2**16
"""A window above it is transformers' word for none."""


class Tokenizer(Protocol):
    """A tokenizer with a window."""

    def ids(self, text: str) -> list[int]:
        """The ids of a text, however many, without those that begin and end it."""
        ...

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """The ids of each prompt, as many as the window has."""
        ...

    def count(self, prompt: str) -> int:
        """How many tokens a prompt has, with those that begin and end it."""
        ...

    def dropped(self, prompt: str) -> int:
        """How many of a prompt's tokens lie beyond the window."""
        ...


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer whose files are in a folder."""
    file, config = folder / "tokenizer.json", _config(folder)
    window = config.get("model_max_length") or 0
    complete = config.get("backend") == "tokenizers" and not config.get("split_special_tokens")
    if file.exists() and complete and 0 < window <= _LONGEST:
        return LightTokenizer(file, config)
    return TransformersTokenizer(folder)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return content


class LightTokenizer:
    """By the tokenizers library alone.

    Args:
        file: `tokenizer.json`, with the whole pipeline.
        config: content of `tokenizer_config.json`: window, padding and truncation.
    """

    def __init__(self, file: Path, config: dict[str, Any]) -> None:
        self._window = int(config["model_max_length"])
        # not `from_file`, which takes no path beyond ASCII in Triton's Python processes
        self._whole = tokenizers.Tokenizer.from_str(file.read_bytes().decode())
        self._whole.no_truncation()
        self._whole.no_padding()
        self._cut = tokenizers.Tokenizer.from_str(self._whole.to_str())
        pad = config["pad_token"]
        pad = pad["content"] if isinstance(pad, dict) else pad
        self._cut.enable_truncation(
            self._window, direction=config.get("truncation_side") or "right"
        )
        self._cut.enable_padding(
            length=self._window,
            pad_token=pad,
            pad_id=self._cut.token_to_id(pad),
            direction=config.get("padding_side") or "right",
        )

    def ids(self, text: str) -> list[int]:
        """See `Tokenizer.ids`."""
        ids: list[int] = self._whole.encode(text, add_special_tokens=False).ids
        return ids

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer.encode`."""
        return [encoding.ids for encoding in self._cut.encode_batch(list(prompts))]

    def count(self, prompt: str) -> int:
        """See `Tokenizer.count`."""
        return len(self._whole.encode(prompt).ids)

    def dropped(self, prompt: str) -> int:
        """See `Tokenizer.dropped`."""
        return max(0, self.count(prompt) - self._window)


class TransformersTokenizer:
    """By transformers.

    Args:
        folder: of the tokenizer's files.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def ids(self, text: str) -> list[int]:
        """See `Tokenizer.ids`."""
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, truncation=False, verbose=False
        ).input_ids
        return ids

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer.encode`."""
        ids: list[list[int]] = self._tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
        ).input_ids
        return ids

    def count(self, prompt: str) -> int:
        """See `Tokenizer.count`."""
        return len(self._tokenizer(prompt, truncation=False).input_ids)

    def dropped(self, prompt: str) -> int:
        """See `Tokenizer.dropped`."""
        return max(0, self.count(prompt) - int(self._tokenizer.model_max_length))
