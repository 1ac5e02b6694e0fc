"""First pictures of a server that has just become ready: a small request in every slot.

The first request in each model process takes some 20 ms longer than the others, and a server that
cannot make a picture had better say so now. Standard library only.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

from tessera.errors import TesseraError, Unavailable
from tessera.serve.repository import FAILURES
from tessera.serve.tritonserver import DIRECT
from tessera.shared.processes import WARM_UP
from tessera.shared.signing import FIRST

_TIMEOUT_S = 300.0
_STEPS = 2  # the fewest that every sampler takes
_AGAIN_S = 0.1


def warm_up(url: str, size: int, word: str) -> None:
    """Make pictures of `size` x `size` pixels, twice as many as there are processes of `render`.

    Args:
        url: of the HTTP endpoint.
        size: in pixels.
        word: `ServerKey.first` of the server.

    Raises:
        Unavailable: there was no room for one of them, or no answer, for five minutes.
        TesseraError: one of them failed; the sentence has the server's answer.
    """
    base = f"{url}/v2/models"
    config = _request(f"{base}/render/config", None)
    count = sum(group["count"] for group in config["instance_group"])
    bodies = [json.dumps(_generate(size, number, word)).encode() for number in range(2 * count)]
    with ThreadPoolExecutor(count) as pool:
        infer = f"{base}/generate/infer"
        for answer in [pool.submit(_draw, infer, body) for body in bodies]:
            answer.result()


def _generate(size: int, number: int, word: str) -> dict[str, Any]:
    values: list[tuple[str, str, str | int]] = [("PROMPT", "BYTES", "warm-up")]
    values += [("JOB_ID", "BYTES", f"{WARM_UP}{number}"), ("STEPS", "INT32", _STEPS)]
    values += [("WIDTH", "INT32", size), ("HEIGHT", "INT32", size), ("SEED", "INT64", 0)]
    inputs = [
        {"name": name, "datatype": kind, "shape": [1, 1], "data": [value]}
        for name, kind, value in values
    ]
    parameters = {FIRST: word, "priority": 1, "job_priority": 1}  # callers may be waiting already
    return {"inputs": inputs, "outputs": [{"name": "INFO"}], "parameters": parameters}


def _draw(url: str, body: bytes) -> None:
    """Make a picture; one that there is no room for is sent again until there is: a server that has
    been started again may have many callers at once.
    """
    until = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            _request(url, body)
            return
        except Unavailable:
            if time.monotonic() > until:
                raise
            time.sleep(_AGAIN_S)


def _request(url: str, body: bytes | None) -> dict[str, Any]:
    try:
        with DIRECT.open(urllib.request.Request(url, body), timeout=_TIMEOUT_S) as answer:
            content: dict[str, Any] = json.load(answer)
            return content
    except urllib.error.HTTPError as error:
        raise _failure(error) from None
    except FAILURES as error:
        late = isinstance(error, TimeoutError) or isinstance(
            getattr(error, "reason", None), TimeoutError
        )
        kind = Unavailable if late else TesseraError
        raise kind(f"the first picture failed: {error}") from None


def _failure(error: urllib.error.HTTPError) -> TesseraError:
    """What a server's error is: `Unavailable` if it may go by."""
    try:
        answer = error.read().decode(errors="replace")
    except FAILURES as broken:
        answer = str(broken)
    kind = Unavailable if error.code == HTTPStatus.SERVICE_UNAVAILABLE else TesseraError
    return kind(f"the first picture failed: {answer}")
