"""The forms in which recordings keep numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tessera.templates.packing import pack, take, unpack
from tessera.templates.storage import CHOICES, Storage, choose_storage
from tests.samples.templates import arrays


class TestStorage:
    """The forms of keeping."""

    @pytest.mark.parametrize(("kind", "error"), [("float32", 0), ("float16", 2e-3), ("int8", 0.02)])
    def test_what_comes_back(self, kind: Any, error: float) -> None:
        given = arrays(0)
        packed = pack(given, kind)
        index = torch.tensor([3, 0, 49])
        for name, array in given.items():
            assert float((unpack(packed, name).float() - array).abs().max()) <= error
            rows = take(packed, name, index) if array.shape[0] == 50 else None
            if rows is not None:
                torch.testing.assert_close(rows.float(), unpack(packed, name).float()[index])
        assert packed["norm.n"].dtype == torch.float32
        assert packed["halo.conv"].element_size() == {"float32": 4, "float16": 2, "int8": 1}[kind]

    def test_half_precision_does_not_overflow(self) -> None:
        packed = pack({"halo.x": torch.tensor([[1e9, -1e9]])}, "float16")
        assert packed["halo.x"].isfinite().all()

    def test_a_kept_step_stands_for_those_after_it(self) -> None:
        storage = Storage("int8", 3)
        assert storage.kept(8) == [0, 3, 6]
        assert [storage.source(s) for s in range(8)] == [0, 0, 0, 3, 3, 3, 6, 6]

    def test_the_best_that_fits_is_chosen(self) -> None:
        sizes = [s.bytes(1000, 20) for s in CHOICES]
        assert sizes == sorted(sizes, reverse=True)
        for storage, size in zip(CHOICES, sizes, strict=True):
            assert choose_storage(1000, 20, size).bytes(1000, 20) == size  # type: ignore[union-attr]
            assert storage.bytes(1000, 20) == size
        assert choose_storage(1000, 20, 10**9) == Storage("float16")
        assert choose_storage(1000, 20, sizes[-1] - 1) is None
