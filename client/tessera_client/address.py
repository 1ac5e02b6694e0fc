"""Where a server is, and what is shown to it: URL, headers, token, certificates."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from tessera.errors import InvalidInput
from tessera_client.checks import wrong_type

TOKEN = "TESSERA_TOKEN"
"""The environment variable with the token, for those who pass none."""
PORTS = {"http": 8000, "https": 443, "grpc": 8001, "grpcs": 443}
"""Scheme -> the port of a URL that names none."""
_ACCEPTED = "http[s]://host[:port][/prefix] or grpc[s]://host[:port]"
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x20-\x7e\xa0-\xff]*")


@dataclass(frozen=True)
class Address:
    """A server's address; its text shows no header.

    Attributes:
        scheme: http, https, grpc or grpcs.
        netloc: host:port.
        prefix: of every path: empty, or with a slash before and none behind.
        headers: of every request; gRPC calls them metadata.
        ca_file: the certificates to trust, in PEM; `None` for the system's.
    """

    scheme: str
    netloc: str
    prefix: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_file: Path | None = None

    @property
    def secure(self) -> bool:
        """Whether it is reached by TLS."""
        return self.scheme in ("https", "grpcs")

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        """How servers prove who they are; `None` without TLS."""
        return ssl.create_default_context(cafile=self.ca_file) if self.secure else None


def address_of(
    url: str,
    *,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    ca_file: str | os.PathLike[str] | None = None,
) -> Address:
    """The address of a server.

    Args:
        url: see `split_url`.
        token: sent as `Authorization: Bearer`; if left out, that of TESSERA_TOKEN; "" for none.
        headers: further ones of every request.
        ca_file: certificates to trust instead of the system's, in PEM.

    Raises:
        InvalidInput: the URL is not of a known form, or has a user name.
        TypeError, ValueError: something else cannot be used.
    """
    scheme, netloc, prefix = split_url(url)
    known = _checked(headers or {})
    sent = os.environ.get(TOKEN, "") if token is None else token
    if not isinstance(sent, str):
        raise wrong_type("token", type(sent).__name__, "a str")
    named = any(name.lower() == "authorization" for name in known)
    if named and token:
        raise ValueError("token and headers both have Authorization; accepted: one of the two")
    if sent and not named:
        known |= _checked({"Authorization": f"Bearer {sent}"})
    return Address(scheme, netloc, prefix, MappingProxyType(known), _certificates(scheme, ca_file))


def split_url(url: str) -> tuple[str, str, str]:
    """(scheme, host:port, prefix) of a server's URL, for example ("http", "host:8000", "").

    Raises:
        InvalidInput: it is not of that form.
    """
    if not isinstance(url, str):
        raise InvalidInput("url", url, _ACCEPTED)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidInput("url", url, _ACCEPTED) from None
    if parts.username is not None:
        raise InvalidInput.described("url", "has a user name", f"{_ACCEPTED}; use token or headers")
    prefix = parts.path.rstrip("/")
    wrong = parts.scheme not in PORTS or not parts.hostname or parts.query or parts.fragment
    if wrong or (prefix and parts.scheme.startswith("grpc")):
        raise InvalidInput("url", url, _ACCEPTED)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return parts.scheme, f"{host}:{port or PORTS[parts.scheme]}", prefix


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers that can be sent; their values are never shown, since they may be secret."""
    if not isinstance(headers, Mapping):
        raise wrong_type("headers", type(headers).__name__, "a dict of str")
    for name, value in headers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"headers has the name {name!r}; accepted: letters, digits and -")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ValueError(f"headers[{name!r}] cannot be sent; accepted: a str of one line")
    return dict(headers)


def _certificates(scheme: str, ca_file: str | os.PathLike[str] | None) -> Path | None:
    """The file, if it holds certificates.

    Raises:
        ValueError: it does not, or nothing is checked by it.
    """
    if ca_file is None:
        return None
    if scheme not in ("https", "grpcs"):
        raise ValueError(f"ca_file is for https:// and grpcs://, and the url is {scheme}://")
    path = Path(ca_file)
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # SSLError is one
        reason = error.strerror or str(error)
        raise ValueError(f"ca_file is {str(path)!r} ({reason}); accepted: a PEM file") from None
    return path
