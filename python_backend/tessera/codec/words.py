"""Words of textual inversion: in a prompt they stand for vectors that were trained, one or several.

A word is found whatever its case, but not within another word. Knows no files and no engines.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tessera.codec.tokenizer import Tokenizer


@dataclass(frozen=True)
class Words:
    """The words that a prompt may have.

    Attributes:
        places: by word, in small letters, the places of its vectors among all.
        vectors: of all words (k, width), for each text encoder.
    """

    places: Mapping[str, range] = field(default_factory=dict)
    vectors: Sequence[torch.Tensor] = ()

    @classmethod
    def of(cls, words: Mapping[str, Sequence[torch.Tensor]]) -> Words:
        """Those whose vectors (k, width) are given, for each text encoder."""
        places, begin = {}, 0
        for word, vectors in words.items():
            places[word.lower()] = range(begin, begin + len(vectors[0]))
            begin += len(vectors[0])
        stacked = [torch.cat(each).float() for each in zip(*words.values(), strict=True)]
        return cls(places, stacked)

    def found_in(self, prompt: str) -> list[str]:
        """The words that a prompt has, in order."""
        return [match.group().lower() for match in self._matches(prompt)]

    def versions_in(self, prompt: str) -> list[str]:
        """The words that a prompt has, in order, each with a digest of its vectors."""
        return [f"{word} {self._digest(self.places[word])}" for word in self.found_in(prompt)]

    def _digest(self, places: range) -> str:
        own = [vectors[places.start : places.stop].numpy().tobytes() for vectors in self.vectors]
        return hashlib.sha256(b"".join(own)).hexdigest()[:16]

    def ids(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Token ids of a text; -1 - i in the place of a word's i-th vector."""
        if not self.places:
            return tokenizer.ids(text)
        ids: list[int] = []
        end = 0
        for match in self._matches(text):
            ids += _plain(tokenizer, text[end : match.start()])
            ids += [-1 - place for place in self.places[match.group().lower()]]
            end = match.end()
        return ids + _plain(tokenizer, text[end:])

    def _matches(self, text: str) -> Iterator[re.Match[str]]:
        """Without those of other letters, as a long s, which a pattern takes for an s."""
        found = self._pattern.finditer(text)
        return (match for match in found if match.group().lower() in self.places)

    @cached_property
    def lengths(self) -> Mapping[int, int]:
        """How many vectors a word has, by the token id of its first."""
        return {-1 - each[0]: len(each) for each in self.places.values() if each}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Any of the words, the longest that fits."""
        longest_first = sorted(self.places, key=len, reverse=True)
        either = "|".join(_whole(word) for word in longest_first)
        return re.compile(either or r"(?!)", re.IGNORECASE)


def _whole(word: str) -> str:
    """A pattern of a word; letters and digits at its ends must not go on."""
    before = r"(?<!\w)" if word[0].isalnum() else ""
    behind = r"(?!\w)" if word[-1].isalnum() else ""
    return before + re.escape(word) + behind


def _plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.ids(text) if text.strip() else []


NO_WORDS = Words()
