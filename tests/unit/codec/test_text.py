"""Embeddings of prompts, against compel and transformers on the same weights."""

from __future__ import annotations

import copy
import itertools
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from compel import Compel, ReturnedEmbeddingsType, SplitLongTextMode

from tessera.codec.chunks import chunks_of
from tessera.codec.prompts import parts_of
from tessera.codec.text import Embeddings, TextEncoder, embed
from tessera.codec.tokenizer import open_tokenizer
from tessera.codec.words import Words
from tessera.contract import MAX_CHUNKS, PromptSyntax
from tessera.engines.torch import TorchEngine
from tessera.networks import graphs
from tessera.networks.text_modules import most_skipped
from tessera.variants import VARIANTS
from tests.fakes.checkpoint import topology
from tests.fakes.engine import FakeEngine
from tests.samples.clip_skip import mended

WINDOW = 77
_SPLIT = SplitLongTextMode.BRUTAL  # else compel looks for words that end in other places
WORDS = ["a", "large", "red", "circle", "at", "the", "left", "on", "a", "blue", "background"]
LONG = " ".join(itertools.islice(itertools.cycle(WORDS), 170))


@cache
def encoders(name: str) -> list[TextEncoder]:
    pipe, variant = topology(name), VARIANTS[name]
    opened = []
    for graph, folder in zip(variant.text_encoders, variant.tokenizers, strict=True):
        place = Path(mkdtemp())
        getattr(pipe, folder).save_pretrained(place)
        module = graphs.wrap(graph, getattr(pipe, graph), variant)
        width = getattr(pipe, graph).config.hidden_size
        opened.append(TextEncoder(place, TorchEngine(module), width=width))
    return opened


def ours(name: str, *prompts: str, syntax: str = PromptSyntax.WEIGHTED) -> Embeddings:
    return embed(encoders(name), prompts, syntax)


def theirs(name: str, *prompts: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings by compel, which writes (word)1.3."""
    pipe: Any = topology(name)
    if name == "sdxl":
        compel = Compel(
            tokenizer=[pipe.tokenizer, pipe.tokenizer_2],
            text_encoder=[pipe.text_encoder, pipe.text_encoder_2],
            returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
            requires_pooled=[False, True],
            truncate_long_prompts=False,
            split_long_text_mode=_SPLIT,
        )
        made, pooled = zip(*[compel(prompt) for prompt in prompts], strict=True)
        return torch.cat(made), torch.cat(pooled)
    compel = Compel(
        pipe.tokenizer,
        pipe.text_encoder,
        truncate_long_prompts=False,
        split_long_text_mode=_SPLIT,
    )
    made = compel.pad_conditioning_tensors_to_same_length([compel(prompt) for prompt in prompts])
    return torch.cat(list(made)), None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize(
    ("prompt", "in_compel"),
    [
        ("a (red:1.5) circle", "a (red)1.5 circle"),
        ("a ((red circle) on blue:1.4)", "a ((red circle)1.1 on blue)1.4"),
        (f"{LONG} (red:1.3)", f"{LONG} (red)1.3"),
        (LONG, LONG),
    ],
)
def test_weights_and_long_prompts_are_those_of_compel(
    name: str, prompt: str, in_compel: str
) -> None:
    more = ("",) if name == "sd15" else ()  # compel cannot pad those of two text encoders
    made = ours(name, prompt, *more)
    hidden, _ = theirs(name, in_compel, *more)
    assert made.hidden.shape == hidden.shape
    assert torch.allclose(made.hidden, hidden, atol=2e-5)
    if name == "sdxl":  # compel pools the text with its brackets
        words = "".join(part.text for part in parts_of(prompt))
        _, pooled = theirs(name, words)
        assert pooled is not None
        assert torch.allclose(made.pooled, pooled, atol=2e-5)


def test_weights_below_one_are_the_formula() -> None:
    words = open_tokenizer(Path(_saved("sd15")))
    place = 1 + words.ids("a red circle").index(words.ids("red")[0])
    plain, empty = ours("sd15", "a red circle").hidden[0], ours("sd15", "").hidden[0]
    for written, weight in (("[red]", 1 / 1.1), ("(red:0)", 0.0), ("(red:-1.5)", -1.5)):
        made = ours("sd15", f"a {written} circle").hidden[0]
        expected = plain.clone()
        expected[place] = empty[place] + weight * (plain[place] - empty[place])
        assert torch.allclose(made, expected, atol=1e-6)
        assert not torch.allclose(made, plain, atol=1e-3)


@cache
def _saved(name: str) -> str:
    folder = mkdtemp()
    topology(name).tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_short_prompt_without_brackets_is_a_plain_one(name: str) -> None:
    prompts = ("", "a large red circle")
    weighted, plain = ours(name, *prompts), ours(name, *prompts, syntax=PromptSyntax.PLAIN)
    assert torch.equal(weighted.hidden, plain.hidden)
    assert torch.equal(weighted.pooled, plain.pooled)


def test_a_plain_prompt_is_cut_and_its_brackets_are_text() -> None:
    assert ours("sd15", LONG, syntax=PromptSyntax.PLAIN).hidden.shape[1] == WINDOW
    literal = ours("sd15", "(red:1.5)", syntax=PromptSyntax.PLAIN).hidden
    assert not torch.allclose(literal, ours("sd15", "(red:1.5)").hidden)
    assert torch.equal(literal, ours("sd15", r"\(red:1.5\)").hidden)


def test_a_full_chunk_ends_behind_a_late_comma() -> None:
    tokenizer = open_tokenizer(Path(_saved("sd15")))
    (comma,) = tokenizer.ids(",")
    room = WINDOW - 2
    for behind, first in ((19, room - 19), (20, room)):
        prompt = "red " * (room - behind - 1) + ", " + "blue " * (behind + 5)
        chunks = chunks_of(tokenizer, prompt, PromptSyntax.WEIGHTED)
        words = [[t for t in row[1 : WINDOW - 1] if t != row[-1]] for row in chunks.ids]
        assert [len(row) for row in words] == [first, room + 5 - first]
        assert comma in words[0]
        assert chunks.tokens == room + 5 + 2


def test_break_begins_a_chunk() -> None:
    made = ours("sd15", "a red circle BREAK on a blue background").hidden
    first, second = ours("sd15", "a red circle").hidden, ours("sd15", "on a blue background").hidden
    assert torch.allclose(made, torch.cat([first, second], 1), atol=1e-6)


def test_tokens_beyond_the_last_chunk_are_counted() -> None:
    tokenizer = open_tokenizer(Path(_saved("sd15")))
    room = MAX_CHUNKS * (WINDOW - 2)
    for words in (room, room + 7):
        chunks = chunks_of(tokenizer, "red " * words, PromptSyntax.WEIGHTED)
        assert len(chunks.ids) == MAX_CHUNKS
        assert (chunks.tokens, chunks.dropped) == (words + 2, words - room)
        assert not chunks.weighted
    plain = chunks_of(tokenizer, "red " * 100, PromptSyntax.PLAIN)
    assert (len(plain.ids), plain.tokens, plain.dropped) == (1, 102, 102 - WINDOW)


def by_pipeline(name: str, prompt: str, clip_skip: int | None) -> tuple[Any, Any]:
    """Hidden states and pooled embeddings of a prompt and the empty one, by diffusers' pipeline."""
    positive, negative, *pooled = mended(topology(name)).encode_prompt(
        prompt,
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        clip_skip=clip_skip,
        negative_prompt="",
    )
    return torch.cat([negative, positive]), torch.cat(pooled[::-1]) if pooled else None


@pytest.mark.parametrize("name", VARIANTS)
def test_skipped_layers_are_those_of_diffusers(name: str) -> None:
    prompt = "a large red circle"
    layers = [e.config.num_hidden_layers for e in _networks(name)]
    most = most_skipped(min(layers), pooled=VARIANTS[name].pooled)
    unskipped, _ = by_pipeline(name, prompt, None)
    for skip in range(most + 1):
        made = embed(encoders(name), ["", prompt], clip_skips=[0, skip])
        hidden, pooled = by_pipeline(name, prompt, skip or None)
        torch.testing.assert_close(made.hidden, hidden, atol=1e-5, rtol=0)
        assert torch.equal(made.hidden[0], embed(encoders(name), [""]).hidden[0])
        assert (skip == 0) == torch.allclose(hidden, unskipped, atol=1e-3)
        if pooled is not None:
            torch.testing.assert_close(made.pooled, pooled, atol=1e-5, rtol=0)


def test_a_weight_moves_from_the_empty_prompt_of_the_same_layers() -> None:
    plain, empty, heavy = (
        embed(encoders("sd15"), [text], "weighted", clip_skips=[1]).hidden[0]
        for text in ("red", "", "(red:1.5)")
    )
    torch.testing.assert_close(heavy[1], empty[1] + 1.5 * (plain[1] - empty[1]))


def _networks(name: str) -> list[Any]:
    return [getattr(topology(name), graph) for graph in VARIANTS[name].text_encoders]


def vectors_of(name: str, count: int, seed: int = 0) -> list[torch.Tensor]:
    """For each text encoder (count, width), as large as what it has."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(count, network.config.hidden_size, generator=generator)
        * network.get_input_embeddings().weight.std()
        for network in _networks(name)
    ]


@pytest.mark.parametrize("syntax", PromptSyntax)
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_words_are_those_of_diffusers(name: str, syntax: str) -> None:
    """Three vectors and one, as `load_textual_inversion` puts them into a pipeline."""
    learned = {"<cat-toy>": vectors_of(name, 3), "blob": vectors_of(name, 1, seed=1)}
    pipe: Any = copy.deepcopy(topology(name))
    parts = zip(VARIANTS[name].text_encoders, VARIANTS[name].tokenizers, strict=True)
    for number, (graph, folder) in enumerate(parts):
        for word, vectors in learned.items():
            state = {word: vectors[number].clone()}
            pipe.load_textual_inversion(
                state, text_encoder=getattr(pipe, graph), tokenizer=getattr(pipe, folder)
            )
    prompt = "a red <cat-toy> on blob"
    expected = pipe.encode_prompt(
        prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0]
    made = embed(encoders(name), [prompt], syntax, words=Words.of(learned))
    torch.testing.assert_close(made.hidden, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(made.hidden, embed(encoders(name), [prompt], syntax).hidden)


def test_a_word_is_found_whatever_its_case_but_not_within_another() -> None:
    words = Words.of({"blob": vectors_of("sd15", 1), "<blob>": vectors_of("sd15", 2)})
    assert words.found_in("a Blob, (BLOB:1.3) and <blob>") == ["blob", "blob", "<blob>"]
    assert not words.found_in("blobs, ablob, blob_2")
    tokenizer = open_tokenizer(Path(_saved("sd15")))
    assert words.ids(tokenizer, "<blob>") == [-2, -3]
    chunks = chunks_of(tokenizer, "blob " * 80, PromptSyntax.PLAIN, words)
    assert (len(chunks.ids[0]), chunks.tokens, chunks.dropped) == (WINDOW, 82, 5)
    assert chunks_of(tokenizer, "(blob:1.5)", PromptSyntax.WEIGHTED, words).weights[0][1] == 1.5


def test_an_older_graph_takes_tokens_only() -> None:
    engine = FakeEngine(lambda inputs: {"last_hidden_state": inputs["input_ids"][..., None] * 1.0})
    encoder = TextEncoder(Path(_saved("sd15")), engine, width=8)
    hidden, _ = encoder.encode([encoder.chunks("a red circle", PromptSyntax.PLAIN)])
    assert hidden.shape == (1, WINDOW, 1)
