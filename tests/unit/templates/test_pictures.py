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
        identity, new = store.pictures.put(PICTURE)
        assert new
        assert store.pictures.put(PICTURE) == (identity, False)
        found = store.pictures.get(identity)
        assert found is not None
        assert (found == PICTURE).all()
        assert store.pictures.size_of(identity) == (64, 96)

    def test_a_damaged_picture_is_not_served(self, store: TemplateStore) -> None:
        identity, new = store.pictures.put(PICTURE)
        assert new
        path = store.pictures.root / f"{identity}.npy"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert store.pictures.get(identity) is None
        assert not path.exists()

    @pytest.mark.parametrize(
        "length", [0, 100, 1000], ids=["empty", "in the head", "in the pixels"]
    )
    def test_a_picture_that_was_cut_off_is_written_again(
        self, store: TemplateStore, length: int
    ) -> None:
        identity, new = store.pictures.put(PICTURE)
        assert new
        path = store.pictures.root / f"{identity}.npy"
        for read in (False, True):
            path.write_bytes(path.read_bytes()[:length])
            assert store.pictures.size_of(identity) in ((0, 0), (64, 96))
            assert not read or store.pictures.get(identity) is None
            assert store.pictures.put(PICTURE) == (identity, True)
            found = store.pictures.get(identity)
            assert found is not None
            assert (found == PICTURE).all()

    @pytest.mark.parametrize("identity", ["abc", "../../etc/passwd", "", "a/b"])
    def test_an_unknown_template_lists_nothing(self, store: TemplateStore, identity: str) -> None:
        """Who knows an id can have the picture, a pixel at a time."""
        known, _ = store.pictures.put(PICTURE)
        with pytest.raises(InvalidInput, match="accepted: the id of a known template") as caught:
            find_picture(store.pictures, identity)
        assert known not in str(caught.value)
