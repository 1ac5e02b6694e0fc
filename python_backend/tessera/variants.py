"""The kinds of Stable Diffusion that Tessera serves: one row each.

What differs between checkpoints of one kind (sizes, prediction type, scale of the latents) is in
the bundle's manifest and scheduler config. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

TOKENS = 77
"""The window of all text encoders of Stable Diffusion."""
INPAINTING = 9
"""Input channels of an inpainting UNet: latents (4), mask (1), the masked picture's latents (4)."""
UNET_CHANNELS = (4, INPAINTING)
"""Input channels of the UNets that Tessera serves."""


@dataclass(frozen=True)
class Variant:
    """One kind.

    Attributes:
        title: its name for people.
        pipeline: the diffusers pipeline that its checkpoints name.
        text_encoders: graphs whose embeddings, side by side, condition the UNet; each has a
            tokenizer of its own (`tokenizer`, `tokenizer_2`).
        pooled: whether the UNet also takes the last encoder's pooled embedding and the picture's
            sizes (Podell et al. 2023, section 2.2).
        steps, guidance, scheduler: what a request gets if the checkpoint says nothing else.
    """

    title: str
    pipeline: str
    text_encoders: tuple[str, ...] = ("text_encoder",)
    pooled: bool = False
    steps: int = 30
    guidance: float = 7.5
    scheduler: str = "dpmpp_2m_karras"

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """Folders of the tokenizers, in the order of the text encoders."""
        return tuple(name.replace("text_encoder", "tokenizer") for name in self.text_encoders)


VARIANTS = {
    "sd15": Variant("Stable Diffusion 1.x", "StableDiffusionPipeline"),
    "sd21": Variant("Stable Diffusion 2.x", "StableDiffusionPipeline", scheduler="ddim"),
    "sdxl": Variant(
        "Stable Diffusion XL base",
        "StableDiffusionXLPipeline",
        text_encoders=("text_encoder", "text_encoder_2"),
        pooled=True,
        guidance=5.0,
        scheduler="euler",
    ),
}
