"""Where keys come from that are no settings: a JWKS as text, in a file, or behind a URL, kept fresh while we run.

Source: https://www.rfc-editor.org/rfc/rfc7517#section-5
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from pathlib import Path
from urllib.parse import urlsplit

from streaming.errors import InvalidJwks
from streaming.tokens import Key, parse_jwks

logger = logging.getLogger(__name__)

MAX_AGE_S = 600.0
"""So old keys may be before they are fetched again: a key that its owner took back is trusted no longer than this."""

MIN_INTERVAL_S = 5.0
"""Between two fetches: tokens with invented names of keys cost their owner no more than this."""

TIMEOUT_S = 5.0
"""A fetch, and so a handshake that waits for it, takes no longer."""

MAX_BYTES = 1 << 20


def is_url(source: str) -> bool:
    """Whether that is a URL to fetch."""
    return source.startswith(("http://", "https://"))


class Jwks:
    """The keys of one JWKS: a `KeySource` for `TokenVerifier`.

    ``source`` is the JSON text itself, a URL (http or https), or else the path of a file. Text and files are read at
    once; a URL is asked when somebody needs a key. Files and URLs are read again when they are old or a key is
    missing; if that fails, the keys that are known stay, and the log says so.

    Raises `InvalidJwks` if text or file cannot be used, or a URL has no host.
    """

    def __init__(
        self,
        source: str,
        *,
        max_age_s: float = MAX_AGE_S,
        min_interval_s: float = MIN_INTERVAL_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._source = source
        self._is_text = source.lstrip().startswith("{")
        self._max_age_s, self._min_interval_s, self._timeout_s = max_age_s, min_interval_s, timeout_s
        self._tried_at = self._fetched_at = -math.inf
        self._task: asyncio.Task[None] | None = None
        self.keys: tuple[Key, ...] = ()
        if is_url(source):
            if not _is_whole(source):
                raise InvalidJwks("its URL has no host, or no sound port")
        else:
            self.keys = parse_jwks(source if self._is_text else _file(source))
            self._fetched_at = time.monotonic()

    async def renew(self, *, missing: bool) -> None:  # see KeySource
        if self._is_text:
            return
        if self._task is None:
            now = time.monotonic()
            if now - self._tried_at < self._min_interval_s or not (missing or now - self._fetched_at > self._max_age_s):
                return
            self._tried_at = now
            self._task = asyncio.create_task(self._fetch(), name="jwks")
        if missing:
            # Not awaited itself: a handshake that is given up must not end the fetch that others wait for.
            await asyncio.wait([self._task])

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                text = await (_url(self._source) if is_url(self._source) else asyncio.to_thread(_file, self._source))
            keys = parse_jwks(text)
        except (InvalidJwks, TimeoutError) as error:
            reason = error.reason if isinstance(error, InvalidJwks) else f"no answer within {self._timeout_s} s"
            logger.warning("keys not fetched", extra={"source": _shown(self._source), "reason": reason})
        else:
            if {key.kid for key in keys} != {key.kid for key in self.keys}:
                logger.info("keys fetched", extra={"source": _shown(self._source), "keys": len(keys)})
            self.keys, self._fetched_at = keys, time.monotonic()
        finally:
            self._task = None


def _file(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return _text(file.read(MAX_BYTES + 1))
    except (OSError, ValueError) as error:
        raise InvalidJwks(f"it is no JSON object, and its file cannot be read ({type(error).__name__})") from None


async def _url(url: str) -> str:
    import httpx2  # takes a while, and is needed here only

    try:
        async with (
            httpx2.AsyncClient(timeout=None) as client,
            client.stream("GET", url, headers={"accept": "application/json"}) as response,
        ):
            if response.status_code != 200:
                raise InvalidJwks(f"its URL answers with HTTP status {response.status_code}")
            body = b""
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > MAX_BYTES:
                    break
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise InvalidJwks(f"its URL cannot be fetched ({type(error).__name__}: {error})") from None
    return _text(body)


def _text(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise InvalidJwks(f"it has more than {MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidJwks("it is not UTF-8") from None


def _is_whole(url: str) -> bool:
    try:
        return bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        return False


def _shown(source: str) -> str:
    """The source without what may be secret: user, password and query of a URL."""
    if not is_url(source):
        return source
    parts = urlsplit(source)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
