"""Which paths of Triton's HTTP API are passed on. Everything else is not there.

What is sent on is built from the parts of a path that matched, never from the client's bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tessera.contract import MODELS
from tessera_gateway.kserve.limits import Refused

Kind = Literal["server", "health", "metadata", "config", "ready", "stats", "infer", "generate"]

_SERVER = re.compile(r"/v2(?:/health/(live|ready))?")
_MODEL = re.compile(
    r"/v2/models/([a-z]+)(?:/versions/(1))?(?:/(infer|generate|ready|config|stats))?"
)
_POSTED = ("infer", "generate")


@dataclass(frozen=True)
class Target:
    """What a request asks for.

    Attributes:
        path: Triton's path of it.
        model: name of a public model, or empty.
    """

    kind: Kind
    path: str
    model: str = ""


def find_target(method: str, path: str) -> Target:
    """What is behind a path.

    Raises:
        Refused: nothing that is passed on (404), or not by this method (405).
    """
    target = _server(path) or _model(path)
    if target is None:
        raise Refused(404, "there is no such path, or it is not open to clients")
    accepted = "POST" if target.kind in _POSTED else "GET"
    if method != accepted:
        raise Refused(405, f"the method is {method[:16]!r}; accepted: {accepted}")
    return target


def _server(path: str) -> Target | None:
    match = _SERVER.fullmatch(path)
    if match is None:
        return None
    return Target("health" if match[1] else "server", match[0])


def _model(path: str) -> Target | None:
    match = _MODEL.fullmatch(path)
    if match is None or match[1] not in MODELS:
        return None
    kind: Kind = match[3] or "metadata"  # type: ignore[assignment]
    return Target(kind, match[0], match[1])
