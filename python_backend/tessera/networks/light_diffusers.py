"""The part of diffusers that serving needs at every start, schedulers, without what makes `import
diffusers` slow.

Measured with diffusers 0.42.1 on torch 2.13, in seconds of CPU time beyond `import torch` (0.95):
`import diffusers` 1.1, of which 0.9 go into `torch._dynamo`, torch's compiler, which diffusers
imports for one decorator of its networks and does without where it cannot be imported. So it is
told that it cannot; 0.2 remain. Its networks add 0.9 and its pipelines' LoRA loaders, which bring
transformers, 0.9 (`docs/internals/startup.md`).

Most schedulers' modules import `scipy.stats` if it is installed, for one of their settings, which
takes 0.4 more. It is imported when a sampler of that setting is made.

Whoever else imports `torch._dynamo`, in another thread or later, gets it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

from tessera.shared.settings import compiles

_DYNAMO = "torch._dynamo"
_STATISTICS = "scipy.stats"


class _Refusal(MetaPathFinder):
    """Lets the thread that made it import everything but torch's compiler."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Refuse the compiler; leave others to the next finder."""
        if name == _DYNAMO and threading.get_ident() == self._thread:
            raise ImportError(f"{name} is not needed")


@contextlib.contextmanager
def _without_dynamo() -> Iterator[None]:
    """Keep torch's compiler out, unless it is there or will be used: then the networks of diffusers
    are to be decorated as its authors want.
    """
    if _DYNAMO in sys.modules or compiles():
        yield
        return
    refusal = _Refusal()
    sys.meta_path.insert(0, refusal)
    try:
        yield
    finally:
        sys.meta_path.remove(refusal)


class _Late(ModuleType):
    """Stands for a module until something in it is used."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


if _STATISTICS not in sys.modules and importlib.util.find_spec("scipy"):
    sys.modules[_STATISTICS] = _Late(_STATISTICS)
with _without_dynamo():
    import diffusers

__all__ = ["scheduler_class"]


def scheduler_class(name: str) -> Any:
    """One of diffusers' schedulers."""
    return getattr(diffusers, name)
