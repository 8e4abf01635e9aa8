"""What can go wrong between an envelope and a socket.

StreamingError
├── InvalidFrame          bytes from a client that are no Phoenix message
├── UnsupportedVersion    a ``vsn`` that is neither 1.0.x nor 2.0.x
├── InvalidTopic          a topic that names no table, schema or column value
├── TokenRefused          a token that does not open a socket
├── HandshakeRefused      a websocket that is answered before its upgrade
├── UnusableSecret        a configured secret that cannot protect anything
├── InvalidJwks           a JWKS that cannot be read, or has no key of use
├── InvalidClaimValidators
├── InvalidFilter         a filter of postgres_changes that cannot be read
├── InvalidBinding        a listener of postgres_changes that cannot be served
├── CatalogueAway         the database cannot be asked about its tables
├── RosterAway            the records that processes share cannot be reached
├── ProcessSilent         another process did not answer
└── CommandFailed         another process could not do what it was asked
"""

from __future__ import annotations

from typing import Final


class StreamingError(Exception):
    """The base of everything this app raises on purpose."""


class InvalidFrame(StreamingError):
    """A websocket frame that is no message of the protocol its socket speaks.

    ``binary_kind`` is the first byte of a binary frame of protocol 2.0.0, `None` for any other frame. The text never
    quotes the frame: it may hold a token.
    """

    def __init__(self, reason: str, binary_kind: int | None = None) -> None:
        self.reason, self.binary_kind = reason, binary_kind
        super().__init__(
            f"the frame is no Phoenix message: {reason}; it was not acted upon; "
            "send one JSON message of the socket's protocol version (vsn) in each frame"
        )


class UnsupportedVersion(StreamingError):
    """The client asked for a serializer that does not exist."""

    def __init__(self, vsn: str) -> None:
        self.vsn = vsn
        super().__init__(
            f"vsn {vsn!r} names no protocol version of this server, so its frames could not be read; "
            "use vsn=1.0.0 or vsn=2.0.0, or leave it out for 1.0.0"
        )


class InvalidTopic(StreamingError):
    """A topic that says nothing about schema, table or column."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(
            f"{topic!r} names no part of a database, so no change belongs to it; "
            "use realtime:*, realtime:SCHEMA, realtime:SCHEMA:TABLE or realtime:SCHEMA:TABLE:COLUMN=eq.VALUE"
        )


TOKEN_REFUSALS: Final = {
    "token_missing": "there is no token, and the socket needs one; pass it as the query parameter apikey",
    "token_malformed": "the token is no JSON Web Token, so it proves nothing; pass the three parts as they were issued",
    "algorithm_not_allowed": "no configured key is for the token's alg, so its signature is not looked at; sign it "
    "with JWT_SECRET and HS256, HS384 or HS512, or as the keys of JWT_JWKS say: RS256, ES256 or EdDSA",
    "key_unknown": "the token names a key (kid) that is not in JWT_JWKS, so its signature cannot be checked; "
    "sign it with a key that is, and see in the log whether the keys could be fetched",
    "signature_mismatch": "no configured secret or key made the token's signature, so its claims cannot be trusted; "
    "sign it with JWT_SECRET, or with a key of JWT_JWKS",
    "claims_not_an_object": "the token's claims are no JSON object, so there is nothing to check; sign an object",
    "exp_invalid": "the token's exp is not a number, so it is unknown when it ends; use seconds since 1970",
    "token_expired": "the token has expired; get a new one",
    "claims_required": "a current channel needs a token with role and exp; issue it with both, or set JWT_DEFAULT_ROLE",
    "claim_missing": "the token lacks a claim that JWT_CLAIM_VALIDATORS asks for; issue it with that claim",
    "claim_mismatch": "a claim of the token is not what JWT_CLAIM_VALIDATORS asks for; issue it with that value",
}
"""The codes of `TokenRefused`, stable for logs and metrics, and what they mean."""


class TokenRefused(StreamingError):
    """A token that does not open a socket; ``code`` is a key of `TOKEN_REFUSALS`, ``claim`` a configured claim's name.

    Neither the token nor its claims are kept: an error may be logged.
    """

    def __init__(self, code: str, claim: str | None = None) -> None:
        self.code, self.claim = code, claim
        text = TOKEN_REFUSALS[code]
        super().__init__(f'{text} (claim "{claim}")' if claim is not None else text)


class HandshakeRefused(StreamingError):
    """A websocket that is not opened: the HTTP answer that says so, and the code for the log."""

    def __init__(self, code: str, status: int, body: bytes = b"", content_type: str | None = None) -> None:
        self.code, self.status, self.body, self.content_type = code, status, body, content_type
        super().__init__(f"the handshake is refused with HTTP status {status}: {code}; the client has to mend it")


class UnusableSecret(StreamingError):
    """A configured secret is empty, or is something else than a shared secret."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the JWT secret is missing or unusable: {reason}; without one anybody could make a token; "
            "make one with: manage.py token secret"
        )


class InvalidJwks(StreamingError):
    """JWT_JWKS, or what is behind it, is no set of keys that tokens could be checked with."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the JWKS cannot be used: {reason}; tokens that are signed with its keys could not be checked; "
            'give it as {"keys": [...]}, with a key for RS256, ES256, EdDSA or HS256'
        )


class InvalidClaimValidators(StreamingError):
    """JWT_CLAIM_VALIDATORS cannot be read."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"JWT claim validators is not a valid JSON object: {reason}; tokens could not be checked against it; "
            'write it with double quotes: {"iss": "Issuer"}'
        )


class InvalidFilter(StreamingError):
    """A filter that the grammar does not know; ``reason`` is in the protocol's words."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the filter cannot be read: {reason}; nothing was subscribed; write it as column=operator.value"
        )


class InvalidBinding(StreamingError):
    """What a client listens to cannot be had; the text is the one it is told, in the protocol's words."""


class CatalogueAway(StreamingError):
    """The database cannot be asked at the moment; ``reason`` is what its driver said."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the database cannot be asked about its tables: {reason}; subscriptions wait until it is back; "
            "see that it runs, and that DATABASE_URL or DB_* lead to it"
        )


class RosterAway(StreamingError):
    """The roster cannot be reached; ``reason`` is what Redis's client said."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the roster is away: {reason}; processes cannot see one another until it is back; "
            "see that the first Redis of REDIS_URL runs, and that it lets us in"
        )


class ProcessSilent(StreamingError):
    """A process was asked, and did not answer in time."""

    def __init__(self, process: str, command: str, timeout_s: float, *, reason: str = "") -> None:
        self.process, self.command, self.timeout_s, self.reason = process, command, timeout_s, reason
        why = f" ({reason})" if reason else ""
        super().__init__(
            f'process {process} did not answer "{command}" within {timeout_s:g} s{why}, so it may or may not have done '
            "it; see that the process and Redis run, and try again"
        )


class CommandFailed(StreamingError):
    """A process could not do what it was asked; ``reason`` is in its words."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the command was not carried out: {reason}")
