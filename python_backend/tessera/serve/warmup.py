"""First pictures of a server that has just become ready: a small request in every slot.

The first request in each model process takes some 20 ms longer than the others, and a server that
cannot make a picture had better say so now. Standard library only.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tessera.errors import TesseraError
from tessera.serve.tritonserver import DIRECT

_TIMEOUT_S = 300.0
_STEPS = 4


def warm_up(url: str, size: int) -> None:
    """Make pictures of `size` x `size` pixels, twice as many as there are slots.

    Args:
        url: of the HTTP endpoint.
        size: in pixels.

    Raises:
        TesseraError: one of them failed; the sentence has the server's answer.
    """
    base = f"{url}/v2/models"
    config = _request(f"{base}/render/config", None)
    slots = sum(group["count"] for group in config["instance_group"])
    body = json.dumps(_generate(size)).encode()
    with ThreadPoolExecutor(slots) as pool:
        infer = f"{base}/generate/infer"
        for answer in [pool.submit(_request, infer, body) for _ in range(2 * slots)]:
            answer.result()


def _generate(size: int) -> dict[str, Any]:
    values = [("PROMPT", "BYTES", "warm-up"), ("STEPS", "INT32", _STEPS)]
    values += [("WIDTH", "INT32", size), ("HEIGHT", "INT32", size), ("SEED", "INT64", 0)]
    inputs = [
        {"name": name, "datatype": kind, "shape": [1, 1], "data": [value]}
        for name, kind, value in values
    ]
    return {"inputs": inputs, "outputs": [{"name": "INFO"}]}


def _request(url: str, body: bytes | None) -> dict[str, Any]:
    try:
        with DIRECT.open(urllib.request.Request(url, body), timeout=_TIMEOUT_S) as answer:
            content: dict[str, Any] = json.load(answer)
            return content
    except urllib.error.HTTPError as error:
        raise TesseraError(f"the first picture failed: {error.read().decode()}") from None
    except OSError as error:
        raise TesseraError(f"the first picture failed: {error}") from None
