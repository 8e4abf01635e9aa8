"""What a token must say before a socket opens, and what we keep of it.

Sources: https://www.rfc-editor.org/rfc/rfc7519 (JSON Web Token), https://www.rfc-editor.org/rfc/rfc7515 (its
signature), https://www.rfc-editor.org/rfc/rfc7517 (sets of keys) and https://www.rfc-editor.org/rfc/rfc7518 (their
algorithms).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import parse_qsl, unquote

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.utils import base64url_decode

from streaming.errors import InvalidClaimValidators, InvalidJwks, TokenRefused, UnusableSecret

Headers = Iterable[tuple[bytes, bytes]]
"""HTTP headers as ASGI gives them: lower-case names."""

_WHITE_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says.

    ``subject`` and ``role`` are the claims ``sub`` and ``role`` where these are text; ``expires_at`` is ``exp``, in
    seconds since 1970, `None` if the token never ends, and ``ends_at`` the moment from which it is refused, which the
    leeway makes later; ``claims`` has all of them, as JSON values.
    """

    subject: str | None
    role: str | None
    expires_at: float | None
    ends_at: float | None
    claims: Mapping[str, object]
    token: str = field(repr=False)


class _Hmac(HMACAlgorithm):
    def check_key_length(self, key: object) -> None:
        """Accept any: short secrets are a warning of ``manage.py check``, not one for each token."""


HMAC_ALGORITHMS: Final = ("HS256", "HS384", "HS512")


def _signatures() -> jwt.PyJWS:
    signatures = jwt.PyJWS(algorithms=[])
    signatures.register_algorithm("HS256", _Hmac(HMACAlgorithm.SHA256))
    signatures.register_algorithm("HS384", _Hmac(HMACAlgorithm.SHA384))
    signatures.register_algorithm("HS512", _Hmac(HMACAlgorithm.SHA512))
    signatures.register_algorithm("RS256", RSAAlgorithm(RSAAlgorithm.SHA256))
    signatures.register_algorithm("ES256", ECAlgorithm(ECAlgorithm.SHA256))
    signatures.register_algorithm("EdDSA", OKPAlgorithm())
    return signatures


_SIGNATURES: Final = _signatures()


@dataclass(frozen=True, slots=True)
class Key:
    """What checks signatures: a shared secret or a public key, its name, and the algorithms that it is for.

    It is tried with no other algorithm: a public key that is taken for a shared secret would let everybody sign.
    """

    kid: str | None
    algorithms: tuple[str, ...]
    material: Any = field(repr=False)


def secret_key(secret: str) -> Key:
    """A shared secret, used as its UTF-8 bytes. Raises `UnusableSecret` if it is empty or another kind of key."""
    try:
        material = _SIGNATURES.get_algorithm_by_name("HS256").prepare_key(secret)
    except jwt.InvalidKeyError as error:
        raise UnusableSecret(str(error)) from None
    return Key(None, HMAC_ALGORITHMS, material)


_SHORTEST_RSA_BITS: Final = 2048


def parse_jwks(text: str) -> tuple[Key, ...]:
    """Read a set of keys: a JSON object with the list ``keys``.

    Keys that are of no use here are left out, as the RFC asks: other types, curves and algorithms, keys for
    encryption, RSA keys of less than 2048 bits. Of a private key the public half is taken.

    Raises `InvalidJwks` if it is no such object, or if no key is left.

    Source: https://www.rfc-editor.org/rfc/rfc7517#section-5
    """
    try:
        jwks = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidJwks("it is not JSON") from None
    if not isinstance(jwks, dict) or not isinstance(jwks.get("keys"), list):
        raise InvalidJwks('it is no object with a list "keys"')
    keys = tuple(key for jwk in jwks["keys"] if isinstance(jwk, dict) and (key := _key(jwk)) is not None)
    if not keys:
        raise InvalidJwks(f"none of its {len(jwks['keys'])} keys is of use")
    return keys


def _key(jwk: Mapping[str, object]) -> Key | None:
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    algorithms: tuple[str, ...]
    material: Any
    try:
        match jwk.get("kty"), jwk.get("crv"):
            case "RSA", _:
                algorithms, material = ("RS256",), RSAAlgorithm.from_jwk(_only(jwk, "kty", "n", "e"))
                if not isinstance(material, RSAPublicKey) or material.key_size < _SHORTEST_RSA_BITS:
                    return None
            case "EC", "P-256":
                algorithms, material = ("ES256",), ECAlgorithm.from_jwk(_only(jwk, "kty", "crv", "x", "y"))
            case "OKP", "Ed25519":
                algorithms, material = ("EdDSA",), OKPAlgorithm.from_jwk(_only(jwk, "kty", "crv", "x"))
            case "oct", _:
                secret = base64url_decode(_only(jwk, "kty", "k")["k"])
                algorithms, material = HMAC_ALGORITHMS, _SIGNATURES.get_algorithm_by_name("HS256").prepare_key(secret)
            case _:
                return None
    except (jwt.PyJWTError, ValueError, TypeError, LookupError):
        return None
    if "alg" in jwk:
        algorithms = tuple(algorithm for algorithm in algorithms if algorithm == jwk["alg"])
    kid = jwk.get("kid")
    return Key(kid if isinstance(kid, str) else None, algorithms, material) if algorithms else None


def _only(jwk: Mapping[str, object], *names: str) -> dict[str, Any]:
    """The members that make the public key; the private half, if somebody has published it, is not even read."""
    return {name: jwk[name] for name in names}


class KeySource(Protocol):
    """Where keys come from that are not settings: they may have to be fetched, and may change."""

    @property
    def keys(self) -> Sequence[Key]:
        """Those that are known now; none before they have been fetched."""

    async def renew(self, *, missing: bool) -> None:
        """Fetch them again when it is time. With ``missing``, a key is not there: then wait for them, if they may
        be fetched already. Takes a bounded time and raises nothing: keys that cannot be had stay away.
        """


class TokenVerifier:
    """Checks tokens against keys and the claims that every token has to carry.

    A token may be signed with any of ``secrets``, so that they can be rotated, or with a key of ``source``.
    ``validators`` maps claims to the values they must have. ``leeway_s`` forgives clocks that differ: a token is taken
    for that many seconds after it expired. ``default_role`` is the role of tokens that name none.

    Raises `UnusableSecret` if there is neither a secret nor a source, or a secret is empty or looks like another kind
    of key.
    """

    def __init__(
        self,
        secrets: Sequence[str],
        validators: Mapping[str, object],
        *,
        source: KeySource | None = None,
        leeway_s: float = 0.0,
        default_role: str | None = None,
    ) -> None:
        if not secrets and source is None:
            raise UnusableSecret("none is configured")
        self._secrets = tuple(map(secret_key, secrets))
        self._source = source
        self._validators = dict(validators)
        self._leeway_s = leeway_s
        self._default_role = default_role

    async def prepare(self, token: str) -> None:
        """Have the key that signed the token, as far as it can be had: what `verify` then says is final.

        Costs nothing but for who has a source. Raises nothing.
        """
        if self._source is None:
            return
        missing = False
        try:
            self._signed_payload(_cleaned(token))
        except TokenRefused as refused:
            missing = refused.code == "key_unknown"
        await self._source.renew(missing=missing)

    def verify(self, token: str, now: float) -> Claims:
        """Check one token as it was received, at ``now`` (seconds since 1970). Raises `TokenRefused`.

        It is percent-decoded once more and freed of white space first: tokens get both on their way through shells and
        URLs. Its ``typ`` may be missing, and ``aud``, ``nbf``, ``iat`` and the like mean nothing unless a validator
        asks for them: many issuers disagree about these. A token without ``exp`` does not expire.
        """
        token = _cleaned(token)
        if not token:
            raise TokenRefused("token_missing")
        claims = _claims(self._signed_payload(token))
        for fault in self.faults(claims, now):
            raise fault
        subject, role, expires_at = claims.get("sub"), claims.get("role"), _expiry(claims)
        return Claims(
            subject=subject if isinstance(subject, str) else None,
            role=role if isinstance(role, str) else self._default_role,
            expires_at=expires_at,
            ends_at=None if expires_at is None else expires_at + self._leeway_s,
            claims=claims,
            token=token,
        )

    def faults(self, claims: Mapping[str, object], now: float) -> Iterator[TokenRefused]:
        """Everything that is wrong with these claims at ``now``; the first is what `verify` raises."""
        try:
            expires_at = _expiry(claims)
        except TokenRefused as refused:
            yield refused
        else:
            if expires_at is not None and expires_at + self._leeway_s <= now:
                yield TokenRefused("token_expired")
        for name, wanted in self._validators.items():
            if name not in claims:
                yield TokenRefused("claim_missing", name)
            # A fixed exp would make every later token wrong: asking for it means that there must be one.
            elif name != "exp" and not _equal(claims[name], wanted):
                yield TokenRefused("claim_mismatch", name)

    def _signed_payload(self, token: str) -> bytes:
        header = _header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        fetched = () if self._source is None else self._source.keys
        fitting = [key for key in (*self._secrets, *fetched) if algorithm in key.algorithms]
        for key in fitting:
            # A token or a key without a name may belong to any.
            if kid is not None and key.kid is not None and key.kid != kid:
                continue
            try:
                payload: bytes = _SIGNATURES.decode(token, key=key.material, algorithms=key.algorithms)
            except jwt.InvalidSignatureError:
                continue
            except jwt.PyJWTError:
                raise TokenRefused("token_malformed") from None
            return payload
        if algorithm not in _SIGNATURES.get_algorithms():
            raise TokenRefused("algorithm_not_allowed")
        if self._source is not None and (not fetched or (kid is not None and all(key.kid != kid for key in fetched))):
            raise TokenRefused("key_unknown")
        raise TokenRefused("signature_mismatch" if fitting else "algorithm_not_allowed")


def sign(claims: Mapping[str, object], secret: str, algorithm: str = "HS256") -> str:
    """Make a token, with one of `HMAC_ALGORITHMS`. Raises `UnusableSecret`."""
    return _SIGNATURES.encode(
        json.dumps(claims, separators=(",", ":")).encode(), secret_key(secret).material, algorithm
    )


def read_unverified(token: str) -> tuple[dict[str, Any], dict[str, object]]:
    """The header and the claims of a token, for somebody to look at: nothing has been checked.

    Raises `TokenRefused` if there is nothing to be read.
    """
    token = _cleaned(token)
    if not token:
        raise TokenRefused("token_missing")
    header = _header(token)
    return header, _claims(base64url_decode(token.split(".")[1]))


def _cleaned(token: str) -> str:
    return _WHITE_SPACE.sub("", unquote(token))


def _header(token: str) -> dict[str, Any]:
    if not token.isascii():
        raise TokenRefused("token_malformed")
    try:
        return _SIGNATURES.get_unverified_header(token)
    except jwt.PyJWTError:
        raise TokenRefused("token_malformed") from None


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
