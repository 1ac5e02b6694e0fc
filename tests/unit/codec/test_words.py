"""Words of textual inversion in prompts."""

from __future__ import annotations

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
