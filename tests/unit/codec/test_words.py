"""Words of textual inversion in prompts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from tessera.codec.words import Words


def test_a_word_has_another_version_with_other_vectors() -> None:
    star, dot = torch.full((2, 4), 1.0), torch.full((1, 4), 2.0)
    both = Words.of({"star": [star, star + 1], "Dot": [dot, dot]})
    (of_star, of_dot) = both.versions_in("a Star on a dot")
    assert of_star.startswith("star ")
    assert of_dot.startswith("dot ")
    alone = Words.of({"Star": [star.half(), star + 1]})
    assert alone.versions_in("star") == [of_star], "other words change nothing"
    for changed in ([star, star], [star[:1], star[:1] + 1], [star + 1, star]):
        assert Words.of({"star": changed}).versions_in("star") != [of_star]
    assert both.versions_in("a circle") == Words().versions_in("a star") == []


def test_letters_that_a_pattern_takes_for_others_are_no_words() -> None:
    letters: Any = SimpleNamespace(ids=lambda text: [ord(letter) for letter in text])
    words = Words.of({"stil": [torch.zeros(2, 4)]})
    for prompt in ("\u017ftil", "st\u0131l", "st\u0130l"):
        assert words.found_in(prompt) == words.versions_in(prompt) == []
        assert words.ids(letters, prompt) == [ord(letter) for letter in prompt]
    assert words.ids(letters, "STIL") == [-1, -2]
