"""The tokenizers library alone gives the ids that transformers gives."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, CLIPTokenizer

from tessera.codec.tokenizer import LightTokenizer, TransformersTokenizer, open_tokenizer
from tessera_build.demo.scenes import vocabulary
from tessera_build.demo.tokenizer import build_tokenizer

TEXT = """a photograph of an astronaut riding a horse, they're on mars; it's 4k & très détaillé
the quick brown fox jumps over the lazy dog ... ¿dónde está? 東京 🙂 naïve café don't we'll i'd"""


@cache
def folder(name: str) -> Path:
    """A tokenizer as the builder saves it: the demo's, and a trained one like CLIP's with the pad
    token of the second text encoder of Stable Diffusion XL.
    """
    path = Path(mkdtemp())
    if name == "demo":
        build_tokenizer(vocabulary()).save_pretrained(path)
    else:
        vocab, merges = trained()
        pad = {"clip": "<|endoftext|>", "pad !": "!"}[name]
        window = {"clip": 77, "pad !": 12}[name]
        pairs: Any = merges  # what transformers takes, whatever it declares
        tokenizer = CLIPTokenizer(vocab, pairs, pad_token=pad, model_max_length=window)
        tokenizer.save_pretrained(path)
    return path


@cache
def trained() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT.lower()], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = dict(model["vocab"])
    for letter in pre_tokenizers.ByteLevel.alphabet():
        vocab.setdefault(f"{letter}</w>", len(vocab))
    return vocab, [(first, second) for first, second in model["merges"]]


WORDS = st.sampled_from([*TEXT.split(), *list(vocabulary())[:20], "<|endoftext|>", "!", " ", "\n"])
PROMPTS = st.one_of(st.text(max_size=120), st.lists(WORDS, max_size=120).map(" ".join))


@pytest.mark.parametrize("name", ["demo", "clip", "pad !"])
@settings(max_examples=150, deadline=None)
@given(prompts=st.lists(PROMPTS, min_size=1, max_size=3))
@example(prompts=[""])
@example(prompts=["<|startoftext|> a! <|endoftext|> !", "É  É\u00a0ﬁ"])
@example(prompts=["word " * 300])
def test_ids_are_those_of_transformers(name: str, prompts: list[str]) -> None:
    light = open_tokenizer(folder(name))
    assert isinstance(light, LightTokenizer)
    theirs = TransformersTokenizer(folder(name))
    assert light.encode(prompts) == theirs.encode(prompts)
    for prompt in prompts:
        assert light.dropped(prompt) == theirs.dropped(prompt)
        assert light.count(prompt) == theirs.count(prompt)


def test_a_window_is_filled_and_what_lies_beyond_is_counted() -> None:
    light = open_tokenizer(folder("pad !"))
    short, long = light.encode(["a", "word " * 300])
    assert len(short) == len(long) == 12
    pad = AutoTokenizer.from_pretrained(folder("pad !")).convert_tokens_to_ids("!")
    assert short[-1] == pad != long[-1]
    assert light.dropped("a") == 0 < light.dropped("word " * 300)


@pytest.mark.parametrize("lacks", ["tokenizer.json", "backend", "model_max_length"])
def test_what_may_differ_is_left_to_transformers(lacks: str, tmp_path: Path) -> None:
    """A folder with `vocab.json` and `merges.txt` alone, one that an older transformers wrote."""
    source = folder("clip")
    content = json.loads((source / "tokenizer.json").read_text())
    config = json.loads((source / "tokenizer_config.json").read_text())
    config.pop(lacks, None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if lacks == "tokenizer.json":
        model = content["model"]
        (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = "\n".join(" ".join(pair) for pair in model["merges"])
        (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    else:
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    opened = open_tokenizer(tmp_path)
    assert isinstance(opened, TransformersTokenizer)
    if lacks != "model_max_length":
        assert opened.encode([TEXT]) == open_tokenizer(source).encode([TEXT])
