"""A body in any chunks comes out in exact parts and large pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_gateway.kserve.body import PIECE, Body
from tessera_gateway.kserve.limits import Refused


async def chunked(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@given(chunks=st.lists(st.binary(max_size=20)), sizes=st.lists(st.integers(0, 30)))
def test_parts_are_exact(chunks: list[bytes], sizes: list[int]) -> None:
    async def read() -> None:
        body, content = Body(chunked(chunks), 10_000), b"".join(chunks)
        for size in sizes:
            if size > len(content):
                with pytest.raises(Refused, match=f"{size - len(content)} bytes too early"):
                    await body.take(size)
                return
            part = b"".join([piece async for piece in body.pieces(size)])
            assert part == content[:size]
            content = content[size:]
        if content:
            with pytest.raises(Refused, match="more bytes than its tensors"):
                await body.end()
        else:
            await body.end()

    asyncio.run(read())


@given(chunks=st.lists(st.binary(max_size=20)))
def test_all_of_it_leaves_nothing(chunks: list[bytes]) -> None:
    async def read() -> bytes:
        body = Body(chunked(chunks), 10_000)
        content = await body.all()
        await body.end()
        return content

    assert asyncio.run(read()) == b"".join(chunks)


def test_chunks_of_one_byte_become_large_pieces() -> None:
    async def sizes() -> list[int]:
        body = Body(chunked([b"x"] * 600_000), 10**9)
        return [len(piece) async for piece in body.pieces(600_000)]

    pieces = asyncio.run(sizes())
    assert sum(pieces) == 600_000
    assert min(pieces[:-1]) >= PIECE


def test_more_than_the_limit_is_not_kept() -> None:
    asked = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal asked
        while True:
            asked += 1
            yield b"x" * 100

    with pytest.raises(Refused) as caught:
        asyncio.run(Body(endless(), 1000).all())
    assert caught.value.status == 413
    assert asked == 11
