"""How fast the machine is now, by one matrix product.

Virtual cores may be threads of one physical core at one time and cores of their own at another, and
the clock changes, too. The milliseconds of the product with one and with two threads tell such
states apart.
"""

from __future__ import annotations

import time

import torch

THREADS = (1, 2)
TRIES = 3
_SIZE = 1024


def product_ms() -> dict[str, float]:
    """Milliseconds of a product of two matrices (1024, 1024) in float32, by number of threads: the
    shortest of three. The number of torch's threads is as before.
    """
    before = torch.get_num_threads()
    try:
        return {str(count): round(1e3 * shortest_s(count), 2) for count in THREADS}
    finally:
        torch.set_num_threads(before)


def shortest_s(threads: int) -> float:
    """Seconds of the product, the shortest of three. Torch has this number of threads then."""
    torch.set_num_threads(threads)
    factor = torch.ones(_SIZE, _SIZE)
    seconds = []
    for _ in range(TRIES):
        began = time.perf_counter()
        factor @ factor
        seconds.append(time.perf_counter() - began)
    return min(seconds)
