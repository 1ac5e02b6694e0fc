"""Pictures in requests and answers: files and data URLs, with limits before anything is decoded.

All of it is work for a thread (`Gateway.in_thread`): none of it may hold the event loop up.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping
from enum import StrEnum

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tessera_client.pictures import picture_of
from tessera_gateway.errors import ApiError, unfit

FILES = ("PNG", "JPEG", "WEBP")
"""Formats that requests may have, as Pillow calls them."""
_ACCEPTED = "a PNG, JPEG or WebP file"
_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w=.+-]+)*;base64,")
_WHOLE = 100


class Format(StrEnum):
    """Formats of answers."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        """For the header Content-Type."""
        return f"image/{self}"


def decode(data: bytes, param: str, max_pixels: int) -> Image.Image:
    """The picture in a file, the right way up, in one of the modes L, RGB and RGBA.

    16 bits a channel are scaled to 8, as the SDK does; RGBA is where something may be transparent.

    Args:
        data: the file.
        param: the field of the request, for the error.
        max_pixels: more are refused from the file's header alone.

    Raises:
        ApiError: it is none, of another format, damaged or too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FILES) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise _too_large(param, f"has {width} x {height} pixels", max_pixels)
            picture.load()
            return picture_of(param, picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(param, "has far too many pixels", max_pixels) from None
    except ApiError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise unfit(param, "cannot be read as a picture", _ACCEPTED) from error


def decode_url(url: str, param: str, max_pixels: int) -> Image.Image:
    """The picture in a data URL, or in plain base64.

    Raises:
        ApiError: see `decode`; or it is another URL: nothing is fetched from elsewhere.
    """
    header = _DATA_URL.match(url[:200])
    if header is None and re.match(r"[a-zA-Z][\w+.-]*:", url[:20]):
        raise unfit(param, "is no data URL with base64", f"data:image/png;base64, and {_ACCEPTED}")
    try:
        data = base64.b64decode(url[header.end() if header else 0 :], validate=True)
    except (binascii.Error, ValueError):
        raise unfit(param, "is no base64", f"data:image/png;base64, and {_ACCEPTED}") from None
    return decode(data, param, max_pixels)


def encode(
    picture: Image.Image,
    form: Format = Format.PNG,
    compression: int = _WHOLE,
    texts: Mapping[str, str] | None = None,
) -> bytes:
    """A picture as a file.

    Args:
        picture: in RGB.
        form: of the file.
        compression: 0 to 100, the quality of JPEG and WebP; WebP at 100 is without loss.
        texts: chunks of a PNG, by keyword.
    """
    sink = io.BytesIO()
    if form is Format.PNG:
        info = PngInfo()
        for keyword, text in (texts or {}).items():
            info.add_text(keyword, text)
        picture.save(sink, "PNG", pnginfo=info, compress_level=1)
    elif form is Format.JPEG:
        picture.save(sink, "JPEG", quality=max(1, compression), subsampling=0)
    else:
        lossless = compression == _WHOLE
        picture.save(sink, "WEBP", quality=compression, lossless=lossless)
    return sink.getvalue()


def base64_of(data: bytes) -> str:
    """As JSON has it."""
    return base64.b64encode(data).decode()


def _too_large(param: str, problem: str, max_pixels: int) -> ApiError:
    return unfit(param, problem, f"up to {max_pixels:,} pixels")
