"""INFO: what the server says of a picture beside its pixels."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(kw_only=True)
class Stats:
    """What `denoise` measures of one job: the part of INFO that it fills in. Times are in
    milliseconds.

    Attributes:
        mode: `dense`, `sparse`, or `mixed`: dense steps behind the first sparse one.
        queue_ms: from the end of `encode` to the first tick, and the time without a slot after it.
        denoise_ms: from the first tick to the end of the last.
        engine_ms: inside the engines; a call that requests share counts in full for each.
        ticks: evaluations of the UNet, of which a step of some samplers has two.
        mean_batch: requests that shared an engine call, on the average of the ticks.
        queued_tick, first_tick, last_tick: the server's number of the tick under way when the job
            was queued, and of those that ran its first and last step.
        sparse_ticks: sparse steps.
        recording: whose prompt was recorded: the edit's `own`, one `near` to it, or the `empty`
            one; `None` without a recording.
        recorded_loras: whether the recording was made with the edit's LoRAs; `None` without any in
            the UNet, or without a recording.
        recorded_controls: whether the recording was made with the edit's ControlNets and their
            images; `None` without any that have an effect, or without a recording.
        margin: latents around the mask that the sparse steps computed, too; `None` likewise.
        cache_load_ms: time that these waited for recorded activations.
        control_load_ms: time until the ControlNets were loaded.
        control_ticks: steps that asked a ControlNet.
        control_wait_ms: time that these waited beyond the encoder half's own.
        refit_ms: refits that its turns began with, text encoders' included.
        switches: how many refits of the UNet these were.
        passed_over: ticks in which another adapter set had the engine.
        adapted_at: first step that was run with its LoRAs; `None` if it has none in the UNet.
        lora_path: `refit`, `side` or `mixed`; `None` if it has none in the UNet.
        side_ticks: steps that went by the low-rank side path.
    """

    mode: str = "dense"
    queue_ms: float = 0.0
    denoise_ms: float = 0.0
    engine_ms: float = 0.0
    ticks: int = 0
    mean_batch: float = 0.0
    queued_tick: int = 0
    first_tick: int = 0
    last_tick: int = 0
    sparse_ticks: int = 0
    recording: str | None = None
    recorded_loras: bool | None = None
    recorded_controls: bool | None = None
    margin: int | None = None
    cache_load_ms: float = 0.0
    control_load_ms: float = 0.0
    control_ticks: int = 0
    control_wait_ms: float = 0.0
    refit_ms: float = 0.0
    switches: int = 0
    passed_over: int = 0
    adapted_at: int | None = None
    lora_path: str | None = None
    side_ticks: int = 0

    def add_tick(self, number: int, batch: int) -> None:
        """Count a step that was run in tick `number` together with others, `batch` in all."""
        self.first_tick = self.first_tick or number
        self.last_tick = number
        self.ticks += 1
        self.mean_batch += (batch - self.mean_batch) / self.ticks

    def to_json(self) -> bytes:
        """As it travels: one JSON object, what was measured with three decimals."""
        content = asdict(self)
        for name, value in content.items():
            if name.endswith("_ms") or name == "mean_batch":
                content[name] = round(value, 3)
        return json.dumps(content).encode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Inverse of `to_json`; fields of another version that are not known here are left out.

        Raises:
            ValueError: it is no JSON.
            TypeError: it lacks a field that has no default.
        """
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in json.loads(text).items() if k in known})


@dataclass(kw_only=True)
class Info(Stats):
    """INFO: what was done for a picture, and how long each stage took, in milliseconds.

    Attributes:
        job_id: the caller's, or a made one.
        bundle: its name.
        worker: id of the running server.
        seed, steps, guidance, width, height, scheduler: as used, defaults filled in.
        mask_ratio: share of the pixels that an edit may change; `None` for a generation.
        template: id of the edited image; `None` for a generation.
        frame: what of an image is drawn, `box`, and what that is brought to, `scaled`, if an edit
            does not draw all of it as it is.
        regions: how many further masks with a prompt of their own an edit has.
        edit_quality: fast, balanced or best; `None` for a generation.
        loras: name, weights, digest, kinds and skipped tensors of each LoRA.
        controls: name, scale, start, end of each ControlNet, `mode` and `guess_mode` if they were
            given, and what was done to its image.
        prompt_tokens: tokens of the prompt, with those that begin and end it.
        prompt_tokens_dropped: tokens beyond the last chunk, which had no effect.
        prompt_chunks: windows of the text encoder that the prompt and the negative prompt fill.
        clip_skip: how many of the text encoders' last layers the prompt skipped.
        words: of textual inversion, in the order of both prompts.
        image_crc32: CRC-32 of IMAGE's bytes; `None` from a server that tells none.
        encode_ms: checks, text encoders, an edit's image, control images.
        decode_ms: VAE and pasting.
        total_ms: from the beginning of `encode` to the end of `decode`.
    """

    job_id: str
    bundle: str = ""
    worker: str = ""
    seed: int
    steps: int
    guidance: float = 0.0
    width: int
    height: int
    scheduler: str
    mask_ratio: float | None = None
    template: str | None = None
    frame: dict[str, Any] | None = None
    regions: int = 0
    edit_quality: str | None = None
    loras: list[dict[str, Any]] = field(default_factory=list)
    controls: list[dict[str, Any]] = field(default_factory=list)
    prompt_tokens: int = 0
    prompt_tokens_dropped: int = 0
    prompt_chunks: int = 1
    clip_skip: int = 0
    words: list[str] = field(default_factory=list)
    image_crc32: int | None = None
    encode_ms: float
    decode_ms: float
    total_ms: float
