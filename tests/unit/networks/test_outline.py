"""What a bundle keeps of its networks' structure is what is read off the networks."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tessera.engines.bundle import Bundle
from tessera.errors import BundleError
from tessera.networks import graphs
from tessera.networks.outline import OUTLINE, UNET_HALVES, Outline
from tessera.networks.slots import slots_of
from tessera.networks.walk import outline_from_config, outline_of, weights_of
from tessera.variants import VARIANTS
from tests.fakes.checkpoint import topology
from tests.fakes.sparse import NAMES, small_unet
from tests.fakes.true_configs import CONFIGS
from tests.samples.bundles import Small


@pytest.mark.parametrize("name", NAMES)
def test_an_outline_survives_its_file(name: str) -> None:
    outline = outline_of(small_unet(name))
    again = Outline.from_json(outline.to_json())
    assert again == outline
    assert list(again.weights) == list(outline.weights)


@pytest.mark.parametrize("variant", VARIANTS)
def test_halves_have_the_layers_of_the_wrapped_halves_in_their_order(variant: str) -> None:
    unet = topology(variant).unet
    outline = outline_of(unet)
    for half in UNET_HALVES:
        wrapped = weights_of(graphs.wrap(half, unet, VARIANTS[variant]))
        assert list(outline.half(half).items()) == list(wrapped.items())
        assert slots_of(outline.half(half)) == slots_of(wrapped)


@pytest.mark.parametrize("variant", CONFIGS)
def test_an_outline_needs_no_weights(variant: str) -> None:
    """Those of the published networks, made on the meta device."""
    unet = outline_from_config("unet", dict(CONFIGS[variant]["unet"]))
    assert unet.program is not None
    assert len(unet.program.residuals) == len(unet.program.paddings) * 3 + 4
    assert {len(shape) for shape in unet.weights.values()} == {2, 4}


def test_a_bundle_holds_it_and_without_it_the_answer_is_the_same(
    small: Callable[[str], Small],
) -> None:
    folder = small("sd21").bundle
    for part in ("unet", "text_encoder"):
        bundle = Bundle(folder)
        name = f"networks/{part}/{OUTLINE}"
        kept = bundle.outline(part)
        assert kept == Outline.from_json((folder / name).read_text())
        del bundle.manifest.files[name]
        derived = bundle.outline(part)
        assert derived == kept
        assert json.loads(derived.to_json()) == json.loads(kept.to_json())
    with pytest.raises(BundleError, match="has no network 'other'"):
        Bundle(folder).outline("other")
