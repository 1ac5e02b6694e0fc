"""`--place`: where networks run, as operators and bundles say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.engines.places import read_places
from tessera.errors import BundleError, TesseraError
from tessera.shared.settings import PlaceSettings
from tessera_build.addons import AddOns


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ("edges", "--place is 'edges'; accepted: NAME=PLACE, where PLACE is auto, cpu or gpu:N"),
        ("edges=gpu", "--place is 'edges=gpu'; accepted"),
        ("edges=gpu:0,gpu:1", "for unet several with commas between"),
        ("vae=cpu,cpu", "for unet several"),
        ("unet=", "--place is 'unet='; accepted"),
        ("unet=gpu:0,gpu:0", "accepted: each GPU once, cpu any number of times, or auto alone"),
        ("unet=auto,cpu", "or auto alone"),
        ("lines=cpu", "--place names 'lines'; accepted: depth, edges, text_encoders, unet, vae"),
    ],
)
def test_bad_places(pair: str, sentence: str) -> None:
    with pytest.raises(TesseraError, match=sentence):
        read_places([pair], ["edges", "depth"])
    with pytest.raises(BundleError, match=sentence):
        AddOns({"edges": Path("a"), "depth": Path("b")}, placements=[pair]).places  # noqa: B018


def test_the_last_place_of_a_name_holds() -> None:
    pairs = ["edges=cpu", "unet=gpu:0,gpu:1", "vae=gpu:1", "edges=gpu:2", "unet=cpu,cpu,gpu:3"]
    found = read_places(pairs, ["edges", "depth"])
    assert found.controlnets == {"edges": "gpu:2"}
    assert found.networks == PlaceSettings(unet=("cpu", "cpu", "gpu:3"), vae="gpu:1")
    assert AddOns({"edges": Path("a")}, placements=pairs[:4]).places == {
        "edges": "gpu:2",
        "unet": "gpu:0,gpu:1",
        "vae": "gpu:1",
    }


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoders"])
def test_no_controlnet_has_a_networks_name(name: str) -> None:
    with pytest.raises(BundleError, match=f"name is '{name}'; accepted: .* not unet or vae or"):
        AddOns({name: Path("a")}).check()
