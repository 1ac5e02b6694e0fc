"""Proof that what reaches an internal model comes from this server's own processes.

Triton takes requests for every model from whoever reaches its port. So `encode` signs the plans
that it makes, `denoise` the stats (a MAC by keyed BLAKE2b), and calls from one model to another
carry a word. So do the server's own first pictures. The key lies beside the board, and only this
server's user can read it. Standard library only.

The tensors beside them are not signed: they are large. Plans and stats have their checksums, which
find accidents. Who has sent a request to `encode` may therefore draw that one job from other
tensors.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from tessera.errors import Forbidden, TesseraError
from tessera.shared.own_files import open_own, write_own

FIRST = "tessera_first"
"""Parameter of the server's own first pictures: the word `ServerKey.first`."""

_KEY_BYTES, _DIGEST_BYTES = 32, 16
_MAC = 2 * _DIGEST_BYTES
"""Length of a MAC, as hexadecimal text."""


class ServerKey:
    """The key of one server. Every process opens it on the same file; the first makes it.

    Args:
        path: of the file.

    Attributes:
        word: of calls from one model to another.
        first: of the server's own first pictures.

    Raises:
        TesseraError: the file is not this user's alone.
    """

    def __init__(self, path: Path) -> None:
        self._key = _read(path)
        self.word = self._mac(b"", b"call")
        self.first = self._mac(b"", b"first")

    def sign(self, name: str, text: bytes) -> bytes:
        """The text of the tensor of that name, behind its MAC."""
        return self._mac(text, name.encode()).encode() + text

    def verified(self, name: str, signed: bytes) -> bytes:
        """Inverse of `sign`.

        Raises:
            Forbidden: this server has not signed it.
        """
        mac, text = signed[:_MAC], signed[_MAC:]
        if not hmac.compare_digest(mac, self._mac(text, name.encode()).encode()):
            raise Forbidden
        return text

    def check_word(self, word: object) -> None:
        """See whether a call comes from another model of this server.

        Raises:
            Forbidden: it does not.
        """
        if not self.knows(word):
            raise Forbidden

    def knows(self, word: object) -> bool:
        """Whether it is the word of calls."""
        return _same(word, self.word)

    def knows_first(self, word: object) -> bool:
        """Whether it is the word of the server's own first pictures."""
        return _same(word, self.first)

    def _mac(self, text: bytes, purpose: bytes) -> str:
        keyed = hashlib.blake2b(text, key=self._key, digest_size=_DIGEST_BYTES, person=purpose)
        return keyed.hexdigest()


def _same(given: object, word: str) -> bool:
    return isinstance(given, str) and given.isascii() and hmac.compare_digest(given, word)


def _read(path: Path) -> bytes:
    try:
        file = open_own(path, os.O_RDONLY)
    except FileNotFoundError:
        write_own(path, secrets.token_bytes(_KEY_BYTES), replace=False)
        file = open_own(path, os.O_RDONLY)
    try:
        key, mode = os.read(file, _KEY_BYTES), os.fstat(file).st_mode
    finally:
        os.close(file)
    if len(key) < _KEY_BYTES or mode & 0o077:
        raise TesseraError(f"{path} is not a key that this server alone can read; remove it")
    return key
