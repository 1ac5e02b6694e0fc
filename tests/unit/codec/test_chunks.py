"""Long prompts fill chunks by the rules that stable-diffusion-webui has published."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tessera.codec.chunks import chunks_of
from tessera.codec.tokenizer import Tokenizer, open_tokenizer
from tessera.codec.words import Words
from tessera.contract import PromptSyntax
from tests.fakes.checkpoint import topology

ROOM, BACK = 75, 20
VECTORS = 8


@cache
def tokenizer() -> Tokenizer:
    folder = mkdtemp()
    topology("sd15").tokenizer.save_pretrained(folder)
    return open_tokenizer(Path(folder))


def by_the_rules(items: list[str]) -> list[int]:
    """How many tokens each chunk has. The rules, written from `tokenize_line` of webui's
    modules/sd_hijack_clip.py (commit 00e0938) with its default settings: `comma` is the place of
    the last comma, -1 if there is none.
    """
    done: list[int] = []
    held, comma = 0, -1
    for item in items:
        if item == ",":
            comma = held
        elif held == ROOM and comma != -1 and held - comma <= BACK:
            done.append(comma + 1)
            held, comma = held - comma - 1, -1
        if held == ROOM:
            done.append(held)
            held, comma = 0, -1
        length = VECTORS if item == "blob" else 1
        if held + length > ROOM:
            done.append(held)
            held, comma = 0, -1
        held += length
    return [*done, held] if held or not done else done


@given(
    st.lists(st.sampled_from(["red"] * 12 + [",", "blob"]), max_size=220).filter(
        lambda items: sum(VECTORS if i == "blob" else 1 for i in items) < 3 * ROOM
    )
)
@example(["red"] * 54 + [","] + ["red"] * 25)
@example(["red"] * 55 + [","] + ["red"] * 25)
@example(["red"] * 60 + [","] + ["red"] * 14 + [","] + ["red"] * 5)
@example(["red"] * 70 + ["blob"] + ["red"] * 5)
@example(["red"] * 75 + [","] + ["red"] * 74)
@settings(max_examples=150)
def test_chunks_are_filled_as_published(items: list[str]) -> None:
    words = Words.of({"blob": [torch.zeros(VECTORS, 4)]})
    chunks = chunks_of(tokenizer(), " ".join(items), PromptSyntax.WEIGHTED, words)
    (end,) = {row[-1] for row in chunks.ids}
    found = [sum(token != end for token in row[1:-1]) for row in chunks.ids]
    assert found == by_the_rules(items)
