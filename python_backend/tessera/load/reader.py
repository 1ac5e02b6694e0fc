"""The side of `jobs`: everything that a router gets to know. Needs no torch."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tessera.controls.residency import loaded
from tessera.edits.measured import policies_of
from tessera.manifest import Manifest
from tessera.shared import load
from tessera.shared.board import Board
from tessera.shared.load import LoraLoad
from tessera.shared.settings import ServerSettings
from tessera.templates.store import Recording, TemplateStore
from tessera.templates.texts import ZEROED

LISTED_S = 0.5
"""So long the folder of recordings is taken to be unchanged."""

RECORDINGS = 512
"""So many recordings are told, the most recently used."""


class LoadReader:
    """Reads.

    Args:
        settings: the server's.
        board: its jobs.
        manifest: its bundle's.
    """

    def __init__(self, settings: ServerSettings, board: Board, manifest: Manifest) -> None:
        self._settings = settings
        self._board = board
        self._manifest = manifest
        self._store = TemplateStore(settings.templates.folder, budget=settings.templates.disk)
        self._recordings: list[Recording] = []
        self._prompted: set[tuple[str, str, int]] = set()
        self._templates: list[str] = []
        self._listed: tuple[float, tuple[int, ...]] = (-LISTED_S, ())
        self._branch_ms = 0.0
        self._policies, _ = policies_of(settings.bundle, manifest.digest)

    def read(self) -> dict[str, Any]:
        """All of it, as `jobs` answers it."""
        told = load.read(self._settings.load)
        defaults = self._manifest.defaults
        memory = told.get("memory", {})
        return {
            "worker": self._settings.worker,
            "slots": told.get("slots", 1),
            "running": told.get("running", []),
            "waiting": [{"job": job, "steps": steps} for job, steps in self._board.queued()],
            "templates": self._pictures(),
            "recordings": [
                _recorded(each, memory, prompted=_schedule(each) in self._prompted)
                for each in self._known()
            ],
            **told.get("loras", dataclasses.asdict(LoraLoad())),
            "controls": loaded(self._settings.control_table),
            "lines": told.get("lines") or self._lines(told.get("running", [])),
            "read_ms": told.get("read_ms", 0.0),
            "decode_ms": round(self._board.decode_ms, 3),
            "defaults": {
                "steps": defaults.steps,
                "width": defaults.width,
                "height": defaults.height,
                "guidance": defaults.guidance,
                "scheduler": defaults.scheduler,
                "pixels": self._manifest.latents.pixels,
                "smallest": self._manifest.limits.min_size,
                "largest": self._manifest.limits.max_size,
                "embedded": self._manifest.guidance_width > 0,
                "quality": self._settings.edit_quality,
            },
            "policies": self._policies.table,
        }

    def _lines(self, running: list[dict[str, Any]]) -> dict[str, Any]:
        """Of a bundle without step chooser: every branch costs its share of the latest step."""
        branches = sum(request["branches"] for request in running)
        if branches:
            self._branch_ms = self._board.step_ms / branches
        line = [round(self._branch_ms, 3), 0.0]
        return {"dense": line, "sparse": line, "factors": []}

    def _pictures(self) -> list[str]:
        """Ids of all templates, recorded or not."""
        self._look()
        return self._templates

    def _known(self) -> list[Recording]:
        """The bundle's recordings."""
        self._look()
        return self._recordings

    def _look(self) -> None:
        """List the folders anew if they have changed."""
        now = time.monotonic()
        if now - self._listed[0] <= LISTED_S:
            return
        changed = _changed(self._store.root)
        if changed != self._listed[1]:
            every = self._store.recordings()
            mine = [r for r in every if r.key.bundle == self._manifest.digest]
            self._recordings = list(_by_schedule(mine).values())[:RECORDINGS]
            self._prompted = {_schedule(each) for each in mine if each.key.text not in ("", ZEROED)}
            self._templates = self._store.pictures.known()
        self._listed = (now, changed)


def _by_schedule(recordings: list[Recording]) -> dict[tuple[str, str, int], Recording]:
    """One recording of each template and schedule: that with the empty prompt, if there is one."""
    found: dict[tuple[str, str, int], Recording] = {}
    for recording in recordings:
        schedule = _schedule(recording)
        if schedule not in found or not recording.key.text:
            found[schedule] = recording
    return found


def _schedule(recording: Recording) -> tuple[str, str, int]:
    """Template, scheduler and steps."""
    return recording.key.template, recording.key.scheduler, recording.key.steps


def _changed(root: Path) -> tuple[int, ...]:
    return tuple(os.stat(root / name).st_mtime_ns for name in ("recordings", "pictures"))


def _recorded(
    recording: Recording, memory: Mapping[str, Mapping[str, int]], *, prompted: bool
) -> dict[str, Any]:
    key = recording.key
    held = {tier: counts.get(key.digest, 0) for tier, counts in memory.items()}
    return {
        "template": key.template,
        "scheduler": key.scheduler,
        "steps": key.steps,
        "kept": len(recording.checksums),
        "host": held.get("memory", 0),
        "device": held.get("device", 0),
        "prompted": prompted,
    }
