"""Refuses requests that can never fit into memory, before anything is done for them, and says what
others hold until they end.

What a picture needs depends on engines and their kernels. This is the least that any of them
needs, so nothing is refused that would fit: the two largest tensors of the VAE decoder, which are
there at the same time; what the halves of the UNet hand on for one row, since calls have as many
rows as fit; and the images of ControlNets as they travel and as numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tessera.engines.bundle import Bundle
from tessera.errors import InvalidInput
from tessera.requests.request import Request
from tessera.types import Array

_CONTROL_BYTES = 15
"""Of a pixel of a control image: three colours in UINT8, and three in float32."""
_TRAVELS = 3
"""Bytes of a pixel of a picture or a control image on its way."""


@dataclass(frozen=True)
class Place:
    """Where a network runs.

    Attributes:
        name: what the operator calls it.
        available: bytes that there are altogether.
        numbers: what the network holds at the same time at least, for each pixel of a picture.
        itemsize: bytes of a number.
    """

    name: str
    available: int
    numbers: float
    itemsize: int


@dataclass(frozen=True)
class RequestMemory:
    """What one request may need, where the UNet and the VAE decoder run."""

    unet: Place
    vae: Place

    def check(self, request: Request) -> None:
        """See whether a request can fit.

        Raises:
            InvalidInput: it cannot; the sentence says what it needs at least.
        """
        pixels = request.width * request.height
        images = len(request.controls) * pixels * _CONTROL_BYTES
        residuals = 2 if request.controls else 1  # are as large as what they are added to
        self._check(self.unet, request, residuals, images)
        self._check(self.vae, request, 1, images)

    def _check(self, place: Place, request: Request, times: int, images: int) -> None:
        picture = int(request.width * request.height * place.numbers * place.itemsize)
        needed = times * picture + images
        if needed <= place.available:
            return
        size = f"{request.width} x {request.height} pixels"
        there = (
            f"what fits into {place.available / 1e9:.3g} GB of memory, where the {place.name} runs"
        )
        if picture <= place.available:
            needs = f"is of {len(request.controls)} images for {size}, which take at least "
            needs += f"{needed / 1e9:.3g} GB with the picture"
            raise InvalidInput.described("CONTROL_IMAGES", needs, there)
        field = "WIDTH" if request.edit is None else "IMAGE"
        needs = f"makes a picture of {size}, which takes at least {picture / 1e9:.3g} GB"
        raise InvalidInput.described(field, needs, there)


def request_memory(bundle: Bundle) -> RequestMemory:
    """Of a bundle's networks, where they run."""
    latents = bundle.manifest.latents.pixels**2
    numbers = {"UNet": bundle.skip_numbers() / latents, "VAE": float(bundle.decoder_channels())}
    graphs = {"UNet": "unet_encoder", "VAE": "vae_decoder"}
    unet, vae = (
        Place(name, available, numbers[name], itemsize)
        for name, graph in graphs.items()
        for available, itemsize in [bundle.memory_of(graph)]
    )
    return RequestMemory(unet, vae)


def held(request: Request, given: Iterable[Array]) -> int:
    """Bytes of host memory that a request takes until it is answered, however long it waits: the
    tensors that it brought, the prepared images of its ControlNets, an edit's picture, and the
    answer. What `edit` holds of a picture that is not drawn as it is comes on top (`Framed.held`).

    Args:
        request: the checked request.
        given: its input tensors.
    """
    pictures = len(request.controls) + (1 if request.edit is None else 2)
    travelling = pictures * request.width * request.height * _TRAVELS
    return sum(array.nbytes for array in given) + travelling
