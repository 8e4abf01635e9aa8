"""Key pairs for tests, and the JSON that publishes them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm


@cache
def private_key(algorithm: str, name: str = "") -> Any:
    """A key that signs with RS256, ES256 or EdDSA; another one for each ``name``."""
    match algorithm:
        case "RS256":
            return rsa.generate_private_key(65537, 2048)
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case _:
            return ed25519.Ed25519PrivateKey.generate()


def public_jwk(algorithm: str, name: str = "", **more: object) -> dict[str, Any]:
    """The public half of that key, ready for a set; its ``kid`` is the algorithm and the name."""
    kinds: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
    jwk = kinds[algorithm].to_jwk(private_key(algorithm, name).public_key(), as_dict=True)
    jwk.pop("key_ops", None)
    return {**jwk, "kid": algorithm + name, **more}


def private_jwk(algorithm: str, name: str = "", **more: object) -> dict[str, Any]:
    """The whole key, as somebody publishes it by mistake."""
    kinds: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
    jwk = kinds[algorithm].to_jwk(private_key(algorithm, name), as_dict=True)
    jwk.pop("key_ops", None)
    return {**jwk, "kid": algorithm + name, **more}


def public_pem(algorithm: str, name: str = "") -> bytes:
    """The public half as everybody can have it."""
    pem: bytes = private_key(algorithm, name).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def jwks(*keys: dict[str, Any]) -> str:
    """A set of keys."""
    return json.dumps({"keys": keys})


def signed_with(algorithm: str, claims: dict[str, Any], name: str = "", kid: str | None = "") -> str:
    """A token; ``kid`` is that of `public_jwk` unless it is given, and absent for `None`."""
    headers = {} if kid is None else {"kid": kid or algorithm + name}
    return jwt.encode(claims, private_key(algorithm, name), algorithm=algorithm, headers=headers)
