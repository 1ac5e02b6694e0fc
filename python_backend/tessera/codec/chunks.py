"""Prompts as chunks of tokens, each as long as a text encoder's window, and a weight per token."""

from __future__ import annotations

from dataclasses import dataclass

from tessera.codec.prompts import parts_of
from tessera.codec.tokenizer import Tokenizer
from tessera.codec.words import NO_WORDS, Words
from tessera.contract import MAX_CHUNKS, PromptSyntax

_BACK = 20
"""A full chunk ends behind its last comma, if that is among so many of its last tokens."""

Token = tuple[int, float]
"""An id and its weight."""


@dataclass(frozen=True)
class Chunks:
    """A prompt as a text encoder takes it.

    Attributes:
        ids: token ids (chunks, window), with those that begin, end and pad each chunk. One below 0
            stands for a vector of a word of textual inversion.
        weights: of each token (chunks, window); 1 for those that begin, end and pad.
        tokens: how many tokens the prompt has, with one that begins and one that ends it.
        dropped: how many of them have no effect.
    """

    ids: list[list[int]]
    weights: list[list[float]]
    tokens: int
    dropped: int

    @property
    def weighted(self) -> bool:
        """Whether a weight is not 1."""
        return any(weight != 1 for row in self.weights for weight in row)


def chunks_of(tokenizer: Tokenizer, prompt: str, syntax: str, words: Words = NO_WORDS) -> Chunks:
    """The chunks of a prompt; an empty one has one.

    Args:
        tokenizer: the text encoder's.
        prompt: the text.
        syntax: one of `PROMPT_SYNTAXES`. A plain prompt is cut at the window, as diffusers'
            pipelines do it. A weighted one has up to `MAX_CHUNKS` chunks.
        words: of textual inversion; in the place of a word are tokens below 0.
    """
    if syntax == PromptSyntax.PLAIN and words.found_in(prompt):
        begin, end, *padding = empty_chunk(tokenizer)
        every = words.ids(tokenizer, prompt)
        first = every[: len(padding)]
        row = [begin, *first, end, *padding[len(first) :]]
        return Chunks([row], [[1.0] * len(row)], 2 + len(every), len(every) - len(first))
    if syntax == PromptSyntax.PLAIN:
        (row,) = tokenizer.encode([prompt])
        dropped = tokenizer.dropped(prompt)
        return Chunks([row], [[1.0] * len(row)], tokenizer.count(prompt), dropped)
    begin, end, *padding = empty_chunk(tokenizer)
    filled = _filled(tokenizer, prompt, len(padding), words)
    kept, rest = filled[:MAX_CHUNKS], filled[MAX_CHUNKS:]
    ids: list[list[int]] = []
    weights: list[list[float]] = []
    for chunk in kept:
        free = len(padding) - len(chunk)
        ids.append([begin, *(token for token, _ in chunk), end, *padding[:free]])
        weights.append([1.0, *(weight for _, weight in chunk), 1.0, *[1.0] * free])
    return Chunks(ids, weights, 2 + sum(map(len, filled)), sum(map(len, rest)))


def _filled(tokenizer: Tokenizer, prompt: str, room: int, words: Words) -> list[list[Token]]:
    """The tokens of a prompt in chunks of at most `room`, as stable-diffusion-webui fills them
    (`tokenize_line` of its modules/sd_hijack_clip.py): what follows a late comma of a full chunk
    goes to the next one, so that no phrase is cut, and no word's vectors are parted. A comma that
    comes when a chunk is full begins the next one, and does not count as late there.
    """
    filled: list[list[Token]] = [[]]
    comma = tokenizer.ids(",")
    behind = 0  # where what follows the last chunk's last comma begins
    for part in parts_of(prompt):
        if part.breaks and filled[-1]:
            filled.append([])
            behind = 0
        for token in words.ids(tokenizer, part.text):
            is_comma, full = [token] == comma, len(filled[-1]) == room
            if full:
                late = behind > 0 and room - behind < _BACK and not is_comma
                keep = behind if late else room
                filled[-1], next_one = filled[-1][:keep], filled[-1][keep:]
                filled.append(next_one)
                behind = 0
            if room - len(filled[-1]) < words.lengths.get(token, 1) <= room:
                filled.append([])
                behind = 0
            filled[-1].append((token, part.weight))
            if is_comma and not full:
                behind = len(filled[-1])
    return filled


def empty_chunk(tokenizer: Tokenizer) -> list[int]:
    """The ids of an empty prompt: one token that begins it, one that ends it, and padding."""
    (ids,) = tokenizer.encode([""])
    return ids
