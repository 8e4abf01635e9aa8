"""What a token must say before a socket opens, and what we keep of it.

Sources: https://www.rfc-editor.org/rfc/rfc7519 (JSON Web Token) and https://www.rfc-editor.org/rfc/rfc7515 (its
signature).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn
from urllib.parse import parse_qsl, unquote

import jwt
from jwt.algorithms import HMACAlgorithm

from streaming.errors import InvalidClaimValidators, TokenRefused, UnusableSecret

Headers = Iterable[tuple[bytes, bytes]]
"""HTTP headers as ASGI gives them: lower-case names."""

_WHITE_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says.

    ``subject`` and ``role`` are the claims ``sub`` and ``role`` where these are text; ``expires_at`` is ``exp``, in
    seconds since 1970, `None` if the token never ends; ``claims`` has all of them, as JSON values.
    """

    subject: str | None
    role: str | None
    expires_at: float | None
    claims: Mapping[str, object]
    token: str = field(repr=False)


class _Hmac(HMACAlgorithm):
    def check_key_length(self, key: object) -> None:
        """Accept any: short secrets are a warning of ``manage.py check``, not one for each token."""


def _signatures() -> jwt.PyJWS:
    signatures = jwt.PyJWS(algorithms=[])
    signatures.register_algorithm("HS256", _Hmac(HMACAlgorithm.SHA256))
    signatures.register_algorithm("HS384", _Hmac(HMACAlgorithm.SHA384))
    signatures.register_algorithm("HS512", _Hmac(HMACAlgorithm.SHA512))
    return signatures


_SIGNATURES: Final = _signatures()
_ALGORITHMS: Final = ["HS256", "HS384", "HS512"]


class TokenVerifier:
    """Checks tokens against shared secrets and the claims that every token has to carry.

    ``secrets`` are used as their UTF-8 bytes; a token may be signed with any of them, so that they can be rotated.
    ``validators`` maps claims to the values they must have. ``leeway_s`` forgives clocks that differ: a token is taken
    for that many seconds after it expired.

    Raises `UnusableSecret` if there is no secret, or one that is empty or looks like another kind of key.
    """

    def __init__(self, secrets: Sequence[str], validators: Mapping[str, object], *, leeway_s: float = 0.0) -> None:
        if not secrets:
            raise UnusableSecret("none is configured")
        for secret in secrets:
            try:
                _SIGNATURES.get_algorithm_by_name("HS256").prepare_key(secret)
            except jwt.InvalidKeyError as error:
                raise UnusableSecret(str(error)) from None
        self._secrets = tuple(secrets)
        self._validators = dict(validators)
        self._leeway_s = leeway_s

    def verify(self, token: str, now: float) -> Claims:
        """Check one token as it was received, at ``now`` (seconds since 1970). Raises `TokenRefused`.

        It is percent-decoded once more and freed of white space first: tokens get both on their way through shells and
        URLs. Its ``typ`` may be missing, and ``aud``, ``nbf``, ``iat`` and the like mean nothing unless a validator
        asks for them: many issuers disagree about these. A token without ``exp`` does not expire.
        """
        token = _WHITE_SPACE.sub("", unquote(token))
        if not token:
            raise TokenRefused("token_missing")
        claims = _claims(self._signed_payload(token))
        expires_at = _expiry(claims)
        if expires_at is not None and expires_at + self._leeway_s <= now:
            raise TokenRefused("token_expired")
        for name, wanted in self._validators.items():
            if name not in claims:
                raise TokenRefused("claim_missing", name)
            # A fixed exp would make every later token wrong: asking for it means that there must be one.
            if name != "exp" and not _equal(claims[name], wanted):
                raise TokenRefused("claim_mismatch", name)
        subject, role = claims.get("sub"), claims.get("role")
        return Claims(
            subject=subject if isinstance(subject, str) else None,
            role=role if isinstance(role, str) else None,
            expires_at=expires_at,
            claims=claims,
            token=token,
        )

    def _signed_payload(self, token: str) -> bytes:
        if not token.isascii():
            raise TokenRefused("token_malformed")
        for secret in self._secrets:
            try:
                payload: bytes = _SIGNATURES.decode(token, key=secret, algorithms=_ALGORITHMS)
            except jwt.InvalidSignatureError:
                continue
            except jwt.InvalidAlgorithmError:
                raise TokenRefused("algorithm_not_allowed") from None
            except jwt.PyJWTError:
                raise TokenRefused("token_malformed") from None
            return payload
        raise TokenRefused("signature_mismatch")


def _claims(payload: bytes) -> dict[str, object]:
    try:
        claims = json.loads(payload, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise TokenRefused("token_malformed") from None
    if not isinstance(claims, dict):
        raise TokenRefused("claims_not_an_object")
    return claims


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _expiry(claims: Mapping[str, object]) -> float | None:
    if "exp" not in claims:
        return None
    exp = claims["exp"]
    # bool is a kind of int in Python, and true would be a time in 1970.
    if isinstance(exp, bool) or not isinstance(exp, int | float):
        raise TokenRefused("exp_invalid")
    try:
        expires_at = float(exp)
    except OverflowError:
        raise TokenRefused("exp_invalid") from None
    if not math.isfinite(expires_at):
        raise TokenRefused("exp_invalid")
    return expires_at


def _equal(claim: object, wanted: object) -> bool:
    """Whether two JSON values are the same: 1 is 1.0, and true is not 1, on every level."""
    if isinstance(claim, bool) or isinstance(wanted, bool):
        return claim is wanted
    if isinstance(claim, dict) and isinstance(wanted, dict):
        return claim.keys() == wanted.keys() and all(_equal(claim[key], wanted[key]) for key in wanted)
    if isinstance(claim, list) and isinstance(wanted, list):
        return len(claim) == len(wanted) and all(map(_equal, claim, wanted))
    return claim == wanted


def parse_validators(text: str) -> Mapping[str, object]:
    """Read the JSON object of JWT_CLAIM_VALIDATORS: claim names and the values they must have.

    Raises `InvalidClaimValidators` if it is no JSON, or no object.
    """
    try:
        validators = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidClaimValidators(str(error)) from None
    if not isinstance(validators, dict):
        raise InvalidClaimValidators(f"it is {type(validators).__name__}")
    return validators


def query_parameters(query_string: bytes) -> dict[str, str]:
    """The parameters of a websocket's URL, percent-decoded; of equal names the last one counts.

    ``name[]=…`` and ``name[key]=…`` are lists and maps to Phoenix. None of our parameters is one, so such a name is
    there, but empty.
    """
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(query_string.decode("utf-8", "replace"), keep_blank_values=True):
        base, bracket, _ = name.partition("[")
        parameters[base] = "" if bracket else value
    return parameters


def token_from(headers: Headers, query_string: bytes) -> str | None:
    """The token that a websocket's handshake brings along; `None` if it has none.

    The header ``x-api-key`` counts before the parameter ``token``, and that before ``apikey``: the first that is there
    at all, even if it is empty. ``Authorization`` does not count.
    """
    token = None
    for name, value in headers:
        if name == b"x-api-key":
            token = value.decode("latin-1")
    if token is not None:
        return token
    parameters = query_parameters(query_string)
    return parameters.get("token", parameters.get("apikey"))
