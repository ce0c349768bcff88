"""The wire below the SDK: one HTTP call that ends by its deadline and holds no more memory than its cap.

The SDK's timeout is per chunk, so a body that drips never ends, and it unpacks whatever it is sent: 6.5 MB of gzip
became 1.5 GB. Here the whole call has one deadline, from connecting to the last byte; the body is counted as it
arrives and as it unpacks; and the key is taken out of every body before anything above can store or show it.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2

LARGEST_BODY = 16 * 2**20  # bytes, packed or unpacked; a chat completion of 100,000 tokens has half a megabyte
KEPT_OF_A_PART = 64 * 2**10  # bytes of a body that did not arrive whole, for whoever asks what the server said
SHORTEST_SECRET = 8  # a shorter "key" (a local server takes any) could stand in any text
MASK = b"***"


class TransferFailed(Exception):
    """The call brought no complete body. `outcome` is its class; `part` is what had arrived, masked."""

    def __init__(self, outcome: str, detail: str, *, status: int | None = None, part: bytes = b"") -> None:
        super().__init__(detail)
        self.outcome, self.detail, self.status, self.part = outcome, detail, status, part


class CappedTransport(httpx2.AsyncBaseTransport):
    """What the SDK's HTTP client sends through; raises TransferFailed alone."""

    def __init__(self, *, deadline_s: float, secrets: tuple[str, ...] = (), largest_body: int = LARGEST_BODY) -> None:
        self._deadline_s, self._largest = deadline_s, largest_body
        self._secrets = [_spellings(secret) for secret in secrets if len(secret) >= SHORTEST_SECRET]
        self._session: aiohttp.ClientSession | None = None
        self._proxy: str | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        status: int | None = None
        body = bytearray()
        try:
            async with asyncio.timeout(self._deadline_s):
                async with self._open(request.url).request(
                    request.method,
                    str(request.url.copy_with(username=None, password=None)),  # they are in a header by now
                    headers={**request.headers, "accept-encoding": "gzip"},
                    data=request.content,
                    allow_redirects=False,
                    proxy=self._proxy,
                ) as response:
                    status = response.status
                    await self._read(response, body)
        except TimeoutError:
            detail = f"no complete reply within {self._deadline_s:g} s"
            raise TransferFailed("timeout", detail, status=status, part=self._part(body)) from None
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:  # nothing was sent, nothing can be owed
            raise TransferFailed("unreachable", self._mask_text(str(error))) from error
        except (aiohttp.ClientError, ConnectionError, zlib.error) as error:
            detail = self._mask_text(f"{type(error).__name__}: {error}")
            raise TransferFailed("connection", detail, status=status, part=self._part(body)) from error
        except _TooLarge:
            detail = f"the body is larger than {self._largest >> 20} MB"
            raise TransferFailed("too_large", detail, status=status, part=self._part(body)) from None
        headers = [(k, v) for k, v in response.raw_headers if k.lower() not in (b"content-encoding", b"content-length")]
        return httpx2.Response(status, headers=headers, content=self._mask(bytes(body)), request=request)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _open(self, url: httpx2.URL) -> aiohttp.ClientSession:
        if self._session is None:
            if not proxy_bypass(url.host):  # asked once: aiohttp's trust_env takes two threads a call
                self._proxy = getproxies().get(url.scheme)
            connector = aiohttp.TCPConnector(limit=0, ssl=httpx2.create_ssl_context())  # the line limits its calls
            self._session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def _read(self, response: aiohttp.ClientResponse, body: bytearray) -> None:
        """The unpacked body, into `body` as it comes; raises _TooLarge before it outgrows the cap."""
        packed = response.headers.get("content-encoding", "identity").lower() in ("gzip", "x-gzip", "deflate")
        unpack = zlib.decompressobj(wbits=47) if packed else None  # 47: gzip or zlib, whichever it is
        arrived = 0
        async for chunk in response.content.iter_any():
            arrived += len(chunk)
            room = self._largest - len(body)
            piece = chunk if unpack is None else unpack.decompress(chunk, room + 1)
            if len(piece) > room or arrived > self._largest:
                raise _TooLarge
            body += piece
        if unpack is not None and not unpack.eof:
            raise aiohttp.ClientPayloadError("the packed body ends in its middle")

    def _part(self, body: bytearray) -> bytes:
        return self._mask(bytes(body))[:KEPT_OF_A_PART]  # in this order, or half a secret might be left at the cut

    def _mask(self, body: bytes) -> bytes:
        for secret in self._secrets:
            body = secret.sub(MASK, body)
        return body

    def _mask_text(self, text: str) -> str:
        return self._mask(text.encode("utf-8", "replace")).decode("utf-8", "replace")


def _spellings(secret: str) -> re.Pattern[bytes]:
    """A secret as a server may write it: plain, escaped in JSON (/ as \\/, = as \\u003d), or percent-encoded."""
    signs = []
    for sign in secret:
        ways = {sign}
        if not (sign.isascii() and (sign.isalnum() or sign in "-_.")):
            coded, number = quote(sign, safe=""), ord(sign)
            ways |= {coded, coded.lower(), json.dumps(sign)[1:-1], f"\\{sign}", f"\\u{number:04x}", f"\\u{number:04X}"}
        signs.append(f"(?:{'|'.join(map(re.escape, sorted(ways)))})" if len(ways) > 1 else re.escape(sign))
    return re.compile("".join(signs).encode())


class _TooLarge(Exception):
    pass
