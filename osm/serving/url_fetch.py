"""Downloads images that requests refer to by URL, from allowed hosts only.

A request must not make the server read from the machine itself or from its network (server-side request forgery). An
allowed host is therefore refused if its name resolves to an address that is not public, for the first URL and for
each redirect. The address that was checked is the one that is connected to. Hosts with private addresses need
a separate flag.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from osm.errors import OsmError
from osm.storage.locations import public

_MAX_REDIRECTS = 3
_SECONDS, _ALL_SECONDS = 20.0, 40.0  # for one response, and for a download with its redirects
_AT_ONCE = 8
_REDIRECTS = (301, 302, 303, 307, 308)


class UrlRefused(OsmError):
    """Raised if a URL must not be read, or cannot be read."""


@dataclass(frozen=True)
class UrlRules:
    """The hosts from which images may be downloaded. A host may include a port, as in `images.example.org:8080`.

    Attributes:
        hosts: hosts that must have public addresses.
        private_hosts: hosts that may have any address, such as a server in the same network.
    """

    hosts: tuple[str, ...] = ()
    private_hosts: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """All allowed hosts."""
        return self.hosts + self.private_hosts


class UrlFetcher:
    """Downloads images from allowed hosts.

    Args:
        rules: the allowed hosts.
        max_bytes: maximum size of a download.
    """

    def __init__(self, rules: UrlRules, max_bytes: int) -> None:
        self.rules, self.max_bytes = rules, max_bytes
        self._slots = asyncio.Semaphore(_AT_ONCE)  # bounds the memory of downloads

    async def fetch(self, url: str, headers: Mapping[str, str] | None = None) -> bytes:
        """Download a file over HTTP or HTTPS.

        Args:
            url: the URL.
            headers: headers for the host of the URL. They are not sent to other hosts after a redirect.

        Raises:
            UrlRefused: the URL or the target of a redirect is not allowed, the download fails or is too large.
        """
        try:
            async with self._slots, asyncio.timeout(_ALL_SECONDS):
                return await self._followed(url, headers)
        except TimeoutError:
            raise UrlRefused(f"{public(url)!r} took longer than {_ALL_SECONDS:g} seconds") from None

    async def _followed(self, url: str, headers: Mapping[str, str] | None) -> bytes:
        first = _origin(url)
        for _ in range(_MAX_REDIRECTS + 1):
            private = self._check(url)
            connector = aiohttp.TCPConnector(resolver=_CheckedResolver(private), use_dns_cache=False)
            timeout = aiohttp.ClientTimeout(total=_SECONDS)
            try:
                # `trust_env` is off, because a proxy would resolve the name again.
                async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
                    sent = dict(headers or {}) if _origin(url) == first else {}
                    async with session.get(url, headers=sent, allow_redirects=False) as response:
                        if response.status not in _REDIRECTS:
                            return await self._body(response, url)
                        url = urljoin(url, response.headers.get("Location", ""))
            except UrlRefused:
                raise
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                refusal = _cause(error)
                raise refusal or UrlRefused(f"{public(url)} cannot be read ({type(error).__name__})") from None
        raise UrlRefused(f"{public(url)} is redirected more than {_MAX_REDIRECTS} times")

    def _check(self, url: str) -> bool:
        """Check a URL against the rules. Return whether its host may have a private address."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise UrlRefused(f"{url[:80]!r} is not a URL") from None
        if parts.scheme not in ("http", "https") or not host or parts.username is not None:
            raise UrlRefused(f"{public(url)} is not a plain http:// or https:// URL")
        names = _names(host, port or (443 if parts.scheme == "https" else 80), port is None)
        if names & _lowered(self.rules.private_hosts):
            return True
        if not names & _lowered(self.rules.hosts):
            raise UrlRefused(f"the host {host!r} is not allowed; use --allow_url_host to allow it")
        if _literal(host) is not None:
            _checkpublic(host, host)
        return False

    async def _body(self, response: aiohttp.ClientResponse, url: str) -> bytes:
        if response.status != 200:
            raise UrlRefused(f"{public(url)} cannot be read (HTTP {response.status})")
        parts, size = [], 0
        async for part in response.content.iter_chunked(1 << 16):  # the size after decompression
            size += len(part)
            if size > self.max_bytes:
                raise UrlRefused(f"{public(url)} is larger than the maximum of {self.max_bytes} bytes")
            parts.append(part)
        return b"".join(parts)


class _CheckedResolver(AbstractResolver):
    """Resolves host names, and refuses those with an address that is not public."""

    def __init__(self, private: bool) -> None:
        self._private = private
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not self._private:
            for result in found:
                _checkpublic(result["host"], host)
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _checkpublic(address: str, host: str) -> None:
    """Raise UrlRefused unless an IP address is public."""
    found = ipaddress.ip_address(address.split("%")[0])
    mapped = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    for one in filter(None, (found, mapped)):
        if not one.is_global or one.is_multicast:
            raise UrlRefused(f"the host {host!r} has the address {address}, which is not public")


def _names(host: str, port: int, default: bool) -> set[str]:
    """Return the forms in which a flag may name a host. A host without a port means the scheme's default port."""
    name = f"[{host}]" if ":" in host else host
    return {f"{name}:{port}".lower(), *([name.lower(), host.lower()] if default else [])}


def _lowered(hosts: Collection[str]) -> set[str]:
    return {host.lower() for host in hosts}


def _literal(host: str) -> Any:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _origin(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ("", "")
    return parts.scheme, parts.netloc.lower()


def _cause(error: BaseException | None) -> UrlRefused | None:
    """Return the refusal that the resolver raised, which aiohttp wraps in an error of its own."""
    while error is not None:
        if isinstance(error, UrlRefused):
            return error
        error = error.__cause__ or error.__context__
    return None
