"""Pictures on disk."""

from __future__ import annotations

import pytest

from tessera.errors import InvalidInput
from tessera.templates.pictures import find_picture
from tessera.templates.store import TemplateStore
from tests.samples.templates import PICTURE


class TestPictures:
    """Pictures on disk."""

    def test_a_picture_is_found_by_its_id(self, store: TemplateStore) -> None:
        identity = store.pictures.put(PICTURE)
        assert store.pictures.put(PICTURE) == identity
        found = store.pictures.get(identity)
        assert found is not None
        assert (found == PICTURE).all()
        assert store.pictures.size_of(identity) == (64, 96)

    def test_a_damaged_picture_is_not_served(self, store: TemplateStore) -> None:
        identity = store.pictures.put(PICTURE)
        path = store.pictures.root / f"{identity}.npy"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert store.pictures.get(identity) is None
        assert not path.exists()

    @pytest.mark.parametrize("identity", ["abc", "../../etc/passwd", "", "a/b"])
    def test_an_unknown_template_lists_the_known_ones(
        self, store: TemplateStore, identity: str
    ) -> None:
        with pytest.raises(InvalidInput, match="accepted: a known template \\(none is known\\)"):
            find_picture(store.pictures, identity)
        known = store.pictures.put(PICTURE)
        with pytest.raises(InvalidInput, match=f"accepted: a known template, one of {known}"):
            find_picture(store.pictures, identity)
