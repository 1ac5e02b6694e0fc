"""Which versions of tritonserver can serve, and which of its flags depend on the version.

Knows what has been tried, what is known to be wrong, and how a server tells its version. Versions
are told by the two numbers that NVIDIA counts up with every container. Standard library only.
"""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from tessera.contract.limits import MAX_CONTROL_PIXELS, MAX_EDIT_SIDE, MAX_REGIONS
from tessera.errors import TesseraError, brief
from tessera.manifest import Manifest
from tessera.serve.repository import FAILURES
from tessera.serve.tritonserver import DIRECT, TritonServer, environment

Version = tuple[int, int]
_HELP_S = 30.0
_ANSWER_S = 10.0
_HEAD = 2**20
"""Bytes of a request beside its pictures: prompts, names, JSON around them."""
_TEXT = 4
"""Bytes of a pixel's value as JSON has it: up to three digits and a comma."""


class UnsupportedServer(TesseraError):
    """A version of tritonserver that is known not to work, or none at all."""


class Support(StrEnum):
    """What is known of a version."""

    TESTED = "tested"
    UNTESTED = "not tested"
    REFUSED = "refused"


@dataclass(frozen=True)
class Release:
    """Versions of tritonserver that are treated alike.

    Attributes:
        first: the first of them. They end before the next row's.
        containers: the tags of NVIDIA's containers that have them.
        support: what is known of them.
        reason: why.
    """

    first: Version
    containers: str
    support: Support
    reason: str


RELEASES = (
    Release((0, 0), "up to 23.10", Support.REFUSED, "it has no iterative sequences"),
    Release((2, 40), "23.11 to 24.09", Support.UNTESTED, "older than what was tested"),
    Release(
        (2, 51), "24.10", Support.TESTED, "all tests run on it, from the nvidia-pytriton wheel"
    ),
    Release((2, 52), "24.11 to 25.08", Support.UNTESTED, "newer than what was tested"),
    Release(
        (2, 61),
        "25.09",
        Support.REFUSED,
        "its iterative sequences lose their callback after a step",
    ),
    Release((2, 62), "25.10 and later", Support.UNTESTED, "newer than what was tested"),
)
"""In their order. NVIDIA counts the second number up by one with each monthly container; 25.07 has
2.59.1.
"""


@dataclass(frozen=True)
class Flag:
    """A flag that some versions have.

    Attributes:
        name: without dashes.
        value: what it is set to; `{input}` stands for the bytes of the largest request.
        reason: why it is set.
    """

    name: str
    value: str
    reason: str


FLAGS = (
    Flag(
        "http-max-input-size", "{input}", "Triton's 64 MiB are less than a legal request may have"
    ),
    Flag("allow-client-shm", "false", "no client of Tessera uses shared memory; off since 26.04"),
)
"""Set if `tritonserver --help` has them, since their first version is stated nowhere."""


def release_of(version: str) -> Release:
    """The row of the table that has a version.

    Raises:
        UnsupportedServer: it is no version.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if not numbers:
        raise UnsupportedServer(
            f"tritonserver says that it is version {brief(version)}; accepted: two numbers with a "
            "dot between, and anything behind them"
        )
    found = (int(numbers[1]), int(numbers[2]))
    return next(release for release in reversed(RELEASES) if release.first <= found)


def check_version(version: str) -> str:
    """A sentence for the operator if the version was not tested, else nothing.

    Raises:
        UnsupportedServer: it is known not to work.
    """
    release = release_of(version)
    tested = ", ".join(
        f"{row.first[0]}.{row.first[1]} (container {row.containers})"
        for row in RELEASES
        if row.support is Support.TESTED
    )
    if release.support is Support.REFUSED:
        raise UnsupportedServer(
            f"tritonserver {version} (container {release.containers}) is refused: "
            f"{release.reason}; tested: {tested}"
        )
    if release.support is Support.UNTESTED:
        return f"tritonserver {version} was not tested with Tessera; tested: {tested}"
    return ""


def stated_version(server: TritonServer) -> str | None:
    """The version that NVIDIA's containers have in a file, or `None`."""
    try:
        text = (server.executable.resolve().parents[1] / "TRITON_VERSION").read_text()
    except OSError:
        return None
    return text.strip()


def running_version(url: str) -> str:
    """The version that a running server answers with.

    Raises:
        UnsupportedServer: it does not answer with one.
    """
    try:
        with DIRECT.open(urllib.request.Request(f"{url}/v2"), timeout=_ANSWER_S) as answer:
            return str(json.load(answer)["version"])
    except (*FAILURES, KeyError, TypeError) as error:
        raise UnsupportedServer(f"tritonserver does not tell its version: {error}") from None


def known_flags(server: TritonServer) -> frozenset[str]:
    """Names of the flags that a server's `--help` has; none if it gives no help."""
    line = [str(server.executable), "--help"]
    try:
        done = subprocess.run(
            line, env=environment(server), capture_output=True, text=True, timeout=_HELP_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    return frozenset(re.findall(r"^\s*--([a-z0-9-]+)", done.stdout + done.stderr, re.MULTILINE))


def optional_flags(known: Collection[str], manifest: Manifest) -> list[str]:
    """The flags of `FLAGS` that a server knows, with their values for a bundle."""
    values = {"input": largest_request(manifest)}
    return [f"--{f.name}={f.value.format(**values)}" for f in FLAGS if f.name in known]


def largest_request(manifest: Manifest) -> int:
    """Bytes of the largest legal request: an edit's picture with its mask and those of its regions.

    Within the bundle's size these may come as JSON. Pictures of which only a part is drawn, and
    control images, may be much larger, and are counted as binary tensors.
    """
    pixels = max(_TEXT * manifest.limits.max_size**2, MAX_EDIT_SIDE**2)
    controls = 3 * MAX_CONTROL_PIXELS if manifest.controlnets else 0
    return _HEAD + (3 + 1 + MAX_REGIONS) * pixels + controls
