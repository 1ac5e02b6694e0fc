"""What front ends list and choose from."""

from __future__ import annotations

from typing import Any

from tessera_client import ServedBundle
from tessera_client.adapters import Adapter
from tessera_gateway.errors import invalid


def options(bundle: ServedBundle) -> dict[str, Any]:
    """GET options: those of webui that mean something here."""
    return {
        "sd_model_checkpoint": bundle.name,
        "sd_checkpoint_hash": bundle.digest,
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
    }


def check_checkpoint(field: str, name: Any, bundle: ServedBundle) -> None:
    """A request names the bundle that is served.

    Raises:
        ApiError: it names another.
    """
    if name not in (bundle.name, f"{bundle.name} [{_hash(bundle)}]"):
        raise invalid(field, name, bundle.name)


def checkpoints(bundle: ServedBundle) -> list[dict[str, Any]]:
    """GET sd-models: the bundle that is served."""
    return [
        {
            "title": bundle.name,
            "model_name": bundle.name,
            "hash": _hash(bundle),
            "sha256": None,
            "filename": bundle.name,
            "config": None,
        }
    ]


def embeddings(adapters: list[Adapter]) -> dict[str, Any]:
    """GET embeddings: words of textual inversion that can be used, and those that cannot."""
    words = {a.word: a for a in adapters if a.word}
    shown = {
        word: {"step": None, "sd_checkpoint": None, "vectors": max(a.targets.values(), default=0)}
        for word, a in words.items()
    }
    loaded = {word: shown[word] for word, a in words.items() if not a.problem}
    return {"loaded": loaded, "skipped": {w: shown[w] for w in shown if w not in loaded}}


def loras(adapters: list[Adapter]) -> list[dict[str, Any]]:
    """GET loras: those that can be used."""
    return [
        {"name": a.name, "alias": a.name, "path": a.name, "metadata": {}}
        for a in adapters
        if not a.problem and not a.word
    ]


def _hash(bundle: ServedBundle) -> str:
    return bundle.digest[:10]
