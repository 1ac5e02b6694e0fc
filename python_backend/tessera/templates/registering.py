"""What is recorded for a registration: the keys, and what these need in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tessera.plan import AdapterUse
from tessera.requests.request import Lora, Prompts
from tessera.templates.keys import RecordingKey
from tessera.templates.store import Recording, TemplateStore
from tessera.templates.texts import ZEROED, text_id, zeroed

if TYPE_CHECKING:
    from tessera.codec.words import Words
    from tessera.templates.recorder import Recorder


@dataclass(frozen=True)
class Waiting:
    """The edit that waits for a recording; empty if none does.

    Attributes:
        job_id: its job.
        texts: of its prompts, whose embeddings it has left in the store.
        adapters: its adapter set.
    """

    job_id: str | None
    texts: tuple[str, ...]
    adapters: tuple[AdapterUse, ...]

    def keys(self, key: RecordingKey) -> list[RecordingKey]:
        """Of its recordings."""
        return [key.with_adapters(self.adapters).with_text(text) for text in self.texts]


def keys_of(
    key: RecordingKey,
    prompts: Prompts,
    loras: Sequence[Lora],
    *,
    recorder: Recorder,
    store: TemplateStore,
    words: Words,
    zero_negative: bool,
) -> list[RecordingKey]:
    """The keys of a negative prompt and a prompt, each once, whose embeddings are in the store from
    now on.

    Args:
        key: with the ControlNets, for the empty prompt.
        prompts: the prompts.
        loras: for both, in the UNet and in the text encoders.
        recorder: embeds prompts.
        store: gets what it returns.
        words: textual inversions that prompts may have.
        zero_negative: whether edits with the prompt that leave the negative one out have zeros.

    Raises:
        InvalidInput: a LoRA is unknown, named twice, or cannot be used.
    """
    if not (prompts.prompt or prompts.negative_prompt or loras or key.controls):
        return [key]
    negative = prompts.negative_prompt
    if negative is None and not (zero_negative and prompts.prompt):
        negative = ""
    keys = []
    with recorder.reading(loras) as read:
        key = key.with_adapters(read.unet)
        for of_branch, prompt, skip in (
            (key.of_negative, negative, 0),
            (key, prompts.prompt, prompts.clip_skip),
        ):
            if prompt is None:
                own = of_branch.with_text(ZEROED)
            else:
                of_text = partial(text_id, syntax=prompts.syntax, clip_skip=skip, loras=read.text)
                own = of_branch.with_text(of_text(prompt, words=words.versions_in(prompt)))
            if own.text:
                embedded = recorder.embed(prompt or "", prompts.syntax, skip)
                store.texts.put(own.digest, zeroed(embedded) if prompt is None else embedded)
            keys.append(own)
    return list(dict.fromkeys(keys))


def describe(recording: Recording) -> dict[str, Any]:
    """A recording, as answers have it."""
    return {
        "steps": recording.key.steps,
        "scheduler": recording.key.scheduler,
        "storage": recording.storage.name,
        "bytes": recording.bytes,
    }


def loras_of(key: RecordingKey) -> list[dict[str, Any]]:
    """The LoRAs that a recording was made with, as answers have them."""
    return [{"name": use.name, "weight": use.weight} for use in key.adapters]


def controls_of(key: RecordingKey) -> list[dict[str, Any]]:
    """Likewise its ControlNets."""
    return [control.report for control in key.controls]
