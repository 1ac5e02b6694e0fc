"""The demo model's CLIP tokenizer: a byte-level BPE in which every word of the little world is one
token.

Any other text still encodes, byte by byte, as with the real CLIP vocabulary.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

_WORD_END = "</w>"
MAX_LENGTH = 77


def build_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """A `CLIPTokenizer` of 77 tokens whose merges spell the given words; ids do not depend on the
    words' order.
    """
    merges = _learn_merges(sorted(set(words)))
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(a + _WORD_END for a in alphabet), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type]  # pairs are what its backend takes
        model_max_length=MAX_LENGTH,
    )


def _learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al. 2016) until every word is one token.

    The tokenizers library's trainer breaks ties by hash order, so that two runs number the tokens
    differently; a training that is resumed needs the same numbers. Ties go to the first pair here.
    """
    spelled = [[*word[:-1], word[-1] + _WORD_END] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(tokens) > 1 for tokens in spelled):
        pairs = Counter(pair for tokens in spelled for pair in itertools.pairwise(tokens))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(tokens, best) for tokens in spelled]
    return merges


def _merge(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for token in tokens:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return out
