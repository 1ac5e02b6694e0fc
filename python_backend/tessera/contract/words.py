"""Words that a field accepts. Standard library only, of Python 3.10: clients have it."""

from __future__ import annotations

from enum import Enum


class Word(str, Enum):
    """One of a few words; it is a text, and prints as one."""

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, spec: str) -> str:
        return format(str(self.value), spec)


class PromptSyntax(Word):
    """Values of PROMPT_SYNTAX: brackets weigh words and long prompts have several chunks of
    tokens, or a prompt is what diffusers' pipelines make of it.
    """

    WEIGHTED = "weighted"
    PLAIN = "plain"


PROMPT_SYNTAXES = tuple(PromptSyntax)
"""The first is the default."""


class Mode(Word):
    """Values of MODE."""

    AUTO = "auto"
    SPARSE = "sparse"
    DENSE = "dense"


MODES = tuple(Mode)
"""The first is the default."""


class MaskKind(Word):
    """Values of MASK_KIND: pixels of MASK are edited or not, or say how strongly they are."""

    HARD = "hard"
    SOFT = "soft"


MASK_KINDS = tuple(MaskKind)
"""The first is the default."""


class MaskFill(Word):
    """Values of MASK_FILL: what the masked part is before it is noised: the image, the colours
    around it, or noise.
    """

    ORIGINAL = "original"
    BLUR = "blur"
    NOISE = "noise"


MASK_FILLS = tuple(MaskFill)
"""The first is the default."""


class MaskTone(Word):
    """Values of MASK_TONE: an edit has the colours that were drawn, or near the border of the mask
    those around it.
    """

    DRAWN = "drawn"
    MATCHED = "matched"


MASK_TONES = tuple(MaskTone)
"""The first is the default."""


class EditQuality(Word):
    """Values of EDIT_QUALITY: how close a sparse edit is to the dense one, and what it costs."""

    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


EDIT_QUALITIES = tuple(EditQuality)


class LoraPolicy(Word):
    """Values of the request parameter `lora_policy`: LoRAs from the first step on, or without them
    for some steps if they are not at hand.
    """

    EXACT = "exact"
    BOUNDED = "bounded"


LORA_POLICIES = tuple(LoraPolicy)
"""The first is the default."""
