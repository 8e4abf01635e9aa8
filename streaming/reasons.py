"""What clients of current channels are told of a token that was refused, in the words that they know.

Source: the protocol of today's server. Where it shows the innards of its language, the words here are plain ones.
"""

from __future__ import annotations

from typing import Final

from streaming.errors import TokenRefused
from streaming.tokens import read_unverified

_SIGNER: Final = "Failed to generate JWT signer{}, check your JWT secret or JWKS configuration"
_MALFORMED: Final = "The token provided is not a valid JWT"
_REQUIRED: Final = "Fields `role` and `exp` are required in JWT"

_REASONS: Final = {
    "token_missing": ("MalformedJWT", _MALFORMED),
    "token_malformed": ("MalformedJWT", _MALFORMED),
    "claims_not_an_object": ("MalformedJWT", _MALFORMED),
    "signature_mismatch": ("JwtSignatureError", "Failed to validate JWT signature"),
    "exp_invalid": ("InvalidJWTToken", "Token expiration time is invalid"),
    "claims_required": ("InvalidJWTToken", _REQUIRED),
    "claim_missing": ("InvalidJWTToken", "A claim that is required is missing in JWT"),
    "claim_mismatch": ("InvalidJWTToken", "A claim of the JWT is not what is required"),
}


def token_reason(refused: TokenRefused, token: str | None, now: float) -> tuple[str, str]:
    """The code and the words for a refusal of ``token`` at ``now`` (seconds since 1970).

    A join is refused with both, ``CODE: words``; a ``system`` message has the words alone.
    """
    if refused.code == "token_expired":
        return "InvalidJWTToken", expired(_expiry(token), now)
    if refused.code in ("key_unknown", "algorithm_not_allowed"):
        return "JwtSignerError", signer_error(refused, token)
    return _REASONS.get(refused.code, ("UnknownErrorOnChannel", refused.code))


def expired(expires_at: float | None, now: float) -> str:
    """What is said of a token that ended at that moment."""
    return f"Token has expired {0 if expires_at is None else max(int(now - expires_at), 0)} seconds ago"


def signer_error(refused: TokenRefused, token: str | None) -> str:
    """What is said of a token for which there is no key; it names the key that the token asks for."""
    kid: object = None
    if refused.code == "key_unknown" and token is not None:
        try:
            kid = read_unverified(token)[0].get("kid")
        except TokenRefused:
            kid = None
    return _SIGNER.format(f' for key ID (kid) "{kid}"' if isinstance(kid, str) else "")


def _expiry(token: str | None) -> float | None:
    try:
        expires_at = None if token is None else read_unverified(token)[1].get("exp")
    except TokenRefused:
        return None
    return float(expires_at) if isinstance(expires_at, int | float) else None
