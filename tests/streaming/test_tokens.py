"""Which tokens open a socket. They are made by hand here, so that two independent hands have to agree."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import TOKEN_REFUSALS, InvalidClaimValidators, InvalidJwks, TokenRefused, UnusableSecret
from streaming.tokens import (
    HMAC_ALGORITHMS,
    Claims,
    Key,
    TokenVerifier,
    parse_jwks,
    parse_validators,
    query_parameters,
    read_unverified,
    sign,
    token_from,
)
from tests.streaming.keys import jwks, private_jwk, public_jwk, public_pem, signed_with

NOW = 1_800_000_000.0
SECRET = "secret"
VALIDATORS = {"iss": "Issuer", "nbf": 1610078130}
GOOD: dict[str, object] = {"iss": "Issuer", "nbf": 1610078130, "exp": NOW + 60}
HASHES = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}


def segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: bytes, payload: bytes, secret: str = SECRET, algorithm: str = "HS256") -> str:
    signing_input = f"{segment(header)}.{segment(payload)}"
    signature = hmac.new(secret.encode(), signing_input.encode(), HASHES[algorithm]).digest()
    return f"{signing_input}.{segment(signature)}"


def token(claims: object = GOOD, secret: str = SECRET, algorithm: str = "HS256", **header: object) -> str:
    head = {"alg": algorithm, "typ": "JWT", **header}
    return signed(json.dumps(head).encode(), json.dumps(claims).encode(), secret, algorithm)


def verify(text: str, validators: Mapping[str, object] = VALIDATORS, now: float = NOW) -> Claims:
    return TokenVerifier([SECRET], validators).verify(text, now)


def refusal(text: str, validators: Mapping[str, object] = VALIDATORS, now: float = NOW) -> str:
    with pytest.raises(TokenRefused) as caught:
        verify(text, validators, now)
    assert caught.value.code in TOKEN_REFUSALS
    assert text not in str(caught.value) or not text
    return caught.value.code


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_good_token_says_who_and_until_when(algorithm: str) -> None:
    claims = {**GOOD, "sub": "u1", "role": "anon", "extra": [1]}
    text = token(claims, algorithm=algorithm)
    assert verify(text) == Claims("u1", "anon", NOW + 60, NOW + 60, claims, text)


def test_subject_and_role_are_text_or_nothing() -> None:
    verified = verify(token({**GOOD, "sub": 5, "role": ["anon"]}))
    assert (verified.subject, verified.role) == (None, None)


def test_the_token_is_not_shown() -> None:
    text = token()
    assert text not in repr(verify(text))


def test_a_token_without_exp_does_not_expire() -> None:
    assert verify(token({"iss": "Issuer", "nbf": 1610078130})).expires_at is None


def test_the_type_may_be_missing_or_spelled_otherwise() -> None:
    payload = json.dumps(GOOD).encode()
    for header in (b'{"alg":"HS256"}', b'{"alg":"HS256","typ":"jwt"}', b'{"alg":"HS256","typ":"at+jwt","kid":"1"}'):
        verify(signed(header, payload))


def test_white_space_and_another_percent_encoding_do_no_harm() -> None:
    text = token()
    verify(f" {text[:10]}\n{text[10:20]} \t{text[20:]}\r\n")
    verify(quote(text, safe="").replace(".", "%2E"))
    verify(text[:10] + "%0A" + text[10:] + "%20")


def test_padding_is_tolerated() -> None:
    head, payload, signature = token({**GOOD, "pad": ""}).split(".")
    padded = ".".join(part + "=" * (-len(part) % 4) for part in (head, payload))
    digest = hmac.new(SECRET.encode(), padded.encode(), hashlib.sha256).digest()
    verify(f"{padded}.{base64.urlsafe_b64encode(digest).decode()}")
    verify(f"{head}.{payload}.{signature}{'=' * (-len(signature) % 4)}")


def test_times_and_names_that_nobody_configured_mean_nothing() -> None:
    odd = {"nbf": NOW + 1_000, "iat": "x", "aud": ["a"], "sub": 1, "jti": 2, "iss": None}
    verify(token(odd), validators={})


@pytest.mark.parametrize(
    "text",
    [
        "garbage",
        "a.b",
        "a.b.c",
        "....",
        "ünï.cö.de",
        "%ZZ.%.%%%",
        f"Bearer {token()}",
        "sb_publishable_x",
        signed(b"not json", b"{}"),
        signed(b"[]", b"{}"),
        signed(b'"HS256"', b"{}"),
        signed(b'{"alg":"HS256"}', b"{a"),
        signed(b'{"alg":"HS256"}', b"\xff"),
        signed(b'{"alg":"HS256"}', b'{"exp":NaN}'),
        signed(b'{"alg":"HS256"}', b"[" * 100_000),
        signed(b'{"alg":"HS256","b64":false,"crit":["b64"]}', b"{}"),
        signed(b'{"alg":"HS256","crit":["x"],"x":1}', b"{}"),
        signed(b'{"alg":"HS256","kid":1}', b"{}"),
        token() + ".x",
    ],
)
def test_what_is_no_token_is_malformed(text: str) -> None:
    assert refusal(text) == "token_malformed"


@pytest.mark.parametrize("text", ["", "  \n", "%20"])
def test_an_empty_token_is_a_missing_one(text: str) -> None:
    assert refusal(text) == "token_missing"


@pytest.mark.parametrize("algorithm", ["none", "None", "RS256", "ES256", "hs256", "", None, 5, [], ["HS256"], {}])
def test_only_shared_secrets_sign(algorithm: object) -> None:
    payload = json.dumps(GOOD).encode()
    assert refusal(signed(json.dumps({"alg": algorithm}).encode(), payload)) == "algorithm_not_allowed"
    assert refusal(signed(b'{"typ":"JWT"}', payload)) == "algorithm_not_allowed"


def test_an_unsigned_token_is_refused() -> None:
    header, payload = segment(b'{"alg":"none","typ":"JWT"}'), segment(json.dumps(GOOD).encode())
    assert refusal(f"{header}.{payload}.") == "algorithm_not_allowed"
    header = segment(b'{"alg":"HS256","typ":"JWT"}')
    assert refusal(f"{header}.{payload}.") == "signature_mismatch"


def test_a_signature_of_another_secret_or_algorithm_is_refused() -> None:
    assert refusal(token(GOOD, "another")) == "signature_mismatch"
    assert refusal(token(alg="HS512")) == "signature_mismatch"
    head, payload, signature = token().split(".")
    changed = segment(json.dumps({**GOOD, "role": "admin"}).encode())
    assert refusal(f"{head}.{changed}.{signature}") == "signature_mismatch"
    assert refusal(f"{head}.{payload}.{segment(b'short')}") == "signature_mismatch"


@pytest.mark.parametrize("claims", [[], "x", 5, None, True])
def test_claims_have_to_be_an_object(claims: object) -> None:
    assert refusal(token(claims)) == "claims_not_an_object"


@pytest.mark.parametrize("exp", [NOW, NOW - 1, NOW - 0.5, 0, -1, 1.5])
def test_a_token_ends_at_its_exp(exp: float) -> None:
    assert refusal(token({**GOOD, "exp": exp})) == "token_expired"


@pytest.mark.parametrize("exp", [NOW + 1, NOW + 0.5, int(NOW) + 1, 4102444800, 1e300])
def test_a_token_lives_until_its_exp(exp: float) -> None:
    assert verify(token({**GOOD, "exp": exp})).expires_at == exp


@pytest.mark.parametrize("exp", ["abc", "", "4102444800", None, True, False, {}, [4102444800], 10**400])
def test_an_exp_that_is_no_time_is_refused(exp: object) -> None:
    assert refusal(token({**GOOD, "exp": exp})) == "exp_invalid"


def test_an_infinite_exp_is_refused() -> None:
    assert refusal(signed(b'{"alg":"HS256"}', b'{"exp":1e999}'), {}) == "exp_invalid"


def test_leeway_forgives_clocks_that_differ() -> None:
    verifier = TokenVerifier([SECRET], {}, leeway_s=5)
    text = token({"exp": NOW})
    assert verifier.verify(text, NOW + 4.9).ends_at == NOW + 5
    with pytest.raises(TokenRefused, match="expired"):
        verifier.verify(text, NOW + 5)


@pytest.mark.parametrize("claims", [{}, {"exp": NOW + 60}, {"iss": "Issuer"}, {"nbf": 1610078130}])
def test_every_configured_claim_has_to_be_there(claims: dict[str, object]) -> None:
    assert refusal(token(claims)) == "claim_missing"


def test_the_refusal_names_the_claim_but_not_its_value() -> None:
    with pytest.raises(TokenRefused) as caught:
        verify(token({**GOOD, "iss": "Somebody"}))
    assert caught.value.claim == "iss"
    assert "Somebody" not in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "claim"),
    [
        ("Issuer", ["Issuer"]),
        ("Issuer", "issuer"),
        (1, True),
        (True, 1),
        (0, False),
        (True, "true"),
        (1, "1"),
        ([1], [True]),
        ([1], [1, 2]),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": True}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1}, {}),
        ({"a": [{"b": 1}]}, {"a": [{"b": True}]}),
        (None, False),
        (None, ""),
        ({}, []),
    ],
)
def test_a_claim_that_is_not_the_configured_one_is_refused(wanted: object, claim: object) -> None:
    assert refusal(token({"c": claim}), {"c": wanted}) == "claim_mismatch"


@pytest.mark.parametrize(
    ("wanted", "claim"),
    [
        (1, 1.0),
        (1610078130, 1610078130.0),
        ({"a": [1, {"b": 2.0}]}, {"a": [1.0, {"b": 2}]}),
        (True, True),
        (None, None),
        ([], []),
        ("x", "x"),
    ],
)
def test_numbers_are_compared_by_value_on_every_level(wanted: object, claim: object) -> None:
    verify(token({"c": claim}), {"c": wanted})


def test_a_configured_exp_means_that_there_has_to_be_one() -> None:
    validators = {"exp": 1}
    verify(token({"exp": NOW + 1}), validators)
    assert refusal(token({}), validators) == "claim_missing"
    assert refusal(token({"exp": 1}), validators) == "token_expired"


def test_each_of_several_secrets_opens() -> None:
    verifier = TokenVerifier(["new", "old"], {})
    for secret in ("new", "old"):
        verifier.verify(token(GOOD, secret), NOW)
    with pytest.raises(TokenRefused, match="no configured secret"):
        verifier.verify(token(GOOD, "older"), NOW)


@pytest.mark.parametrize(
    "secrets", [[], [""], ["good", ""], ["-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----"]]
)
def test_a_verifier_without_a_real_secret_is_not_made(secrets: list[str]) -> None:
    with pytest.raises(UnusableSecret):
        TokenVerifier(secrets, {})


@given(st.text() | st.lists(st.binary(max_size=20).map(segment), min_size=3, max_size=3).map(".".join))
def test_any_text_is_refused_and_nothing_else_happens(text: str) -> None:
    with pytest.raises(TokenRefused):
        verify(text)


@given(st.binary())
def test_any_signed_payload_is_claims_or_refused(payload: bytes) -> None:
    try:
        verify(signed(b'{"alg":"HS256"}', payload), {})
    except TokenRefused:
        return


def test_validators_are_a_json_object() -> None:
    assert parse_validators("{}") == {}
    assert parse_validators('{"iss": "Issuer", "n": [1]}') == {"iss": "Issuer", "n": [1]}


@pytest.mark.parametrize("text", ["", "[]", "{'iss': 'x'}", "null", '"x"', '{"a": NaN}', "[" * 100_000])
def test_anything_else_is_a_clear_error(text: str) -> None:
    with pytest.raises(InvalidClaimValidators, match="not a valid JSON object"):
        parse_validators(text)


@pytest.mark.parametrize(
    ("headers", "query", "found"),
    [
        ([], b"", None),
        ([], b"vsn=1.0.0&jwt=a", None),
        ([], b"apikey=a", "a"),
        ([], b"token=a", "a"),
        ([], b"token=a&apikey=b", "a"),
        ([], b"token=&apikey=b", ""),
        ([], b"token&apikey=b", ""),
        ([], b"apikey=a&apikey=b", "b"),
        ([], b"token[]=a&apikey=b", ""),
        ([], b"apikey[]=a", ""),
        ([], b"apikey[k]=a", ""),
        ([], b"apikey=a%2Eb%20+c%ZZ", "a.b  c%ZZ"),
        ([(b"x-api-key", b"h")], b"token=a&apikey=b", "h"),
        ([(b"x-api-key", b"")], b"token=a", ""),
        ([(b"authorization", b"Bearer h"), (b"apikey", b"h")], b"", None),
        ([(b"authorization", b"Bearer h")], b"apikey=b", "b"),
    ],
)
def test_the_token_comes_from_the_first_place_that_has_one(
    headers: list[tuple[bytes, bytes]], query: bytes, found: str | None
) -> None:
    assert token_from(headers, query) == found


def test_a_query_that_is_not_utf_8_is_read_all_the_same() -> None:
    assert query_parameters(b"a=%FF&\xff=1&vsn=2.0.0")["vsn"] == "2.0.0"


# Keys


@dataclass
class Keys:
    """A source whose keys are there, or come with the next fetch."""

    keys: Sequence[Key] = ()
    to_come: Sequence[Key] = ()
    asked: list[bool] = field(default_factory=list)

    async def renew(self, *, missing: bool) -> None:
        self.asked.append(missing)
        if missing:
            self.keys = self.to_come


ALL = ("RS256", "ES256", "EdDSA")


def with_keys(*keys: dict[str, Any], secrets: Sequence[str] = ()) -> TokenVerifier:
    return TokenVerifier(secrets, {}, source=Keys(parse_jwks(jwks(*keys))))


def code_of(verifier: TokenVerifier, text: str) -> str:
    with pytest.raises(TokenRefused) as caught:
        verifier.verify(text, NOW)
    return caught.value.code


@pytest.mark.parametrize("algorithm", ALL)
def test_a_public_key_opens_for_what_its_other_half_has_signed(algorithm: str) -> None:
    verifier = with_keys(*map(public_jwk, ALL))
    assert verifier.verify(signed_with(algorithm, GOOD), NOW).expires_at == NOW + 60
    assert code_of(verifier, signed_with(algorithm, GOOD, "stranger", kid=algorithm)) == "signature_mismatch"
    assert code_of(verifier, signed_with(algorithm, GOOD, "stranger")) == "key_unknown"
    assert code_of(verifier, signed_with(algorithm, {**GOOD, "exp": NOW})) == "token_expired"


@pytest.mark.parametrize("algorithm", ALL)
def test_a_token_or_a_key_without_a_name_may_belong_to_any(algorithm: str) -> None:
    with_keys(*map(public_jwk, ALL)).verify(signed_with(algorithm, GOOD, kid=None), NOW)
    nameless = {name: value for name, value in public_jwk(algorithm).items() if name != "kid"}
    with_keys(nameless).verify(signed_with(algorithm, GOOD, kid="whatever"), NOW)


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize("hmac_algorithm", HASHES)
def test_a_public_key_is_never_a_shared_secret(algorithm: str, hmac_algorithm: str) -> None:
    jwk = public_jwk(algorithm)
    head = json.dumps({"alg": hmac_algorithm, "typ": "JWT", "kid": algorithm}).encode()
    forms = [public_pem(algorithm), public_pem(algorithm).strip(), json.dumps(jwk).encode()]
    forms += [str(jwk[part]).encode() for part in ("n", "x") if part in jwk]
    for known in forms:
        signing_input = f"{segment(head)}.{segment(json.dumps(GOOD).encode())}"
        digest = hmac.new(known, signing_input.encode(), HASHES[hmac_algorithm]).digest()
        forged = f"{signing_input}.{segment(digest)}"
        assert code_of(with_keys(jwk), forged) == "algorithm_not_allowed"
        assert code_of(with_keys(jwk, secrets=[SECRET]), forged) == "signature_mismatch"


@pytest.mark.parametrize("algorithm", ALL)
def test_a_key_is_tried_with_its_own_algorithm_only(algorithm: str) -> None:
    for other in ALL:
        if other != algorithm:
            head, payload, signature = signed_with(algorithm, GOOD).split(".")
            head = segment(json.dumps({"alg": other, "kid": algorithm}).encode())
            assert code_of(with_keys(public_jwk(algorithm)), f"{head}.{payload}.{signature}") == "algorithm_not_allowed"


def test_an_unsigned_token_stays_refused() -> None:
    header, payload = segment(b'{"alg":"none","kid":"RS256"}'), segment(json.dumps(GOOD).encode())
    assert code_of(with_keys(public_jwk("RS256")), f"{header}.{payload}.") == "algorithm_not_allowed"


def test_secrets_and_keys_open_side_by_side() -> None:
    verifier = with_keys(public_jwk("ES256"), secrets=[SECRET])
    verifier.verify(signed_with("ES256", GOOD), NOW)
    verifier.verify(token(), NOW)
    verifier.verify(token(kid="of another issuer"), NOW)
    assert code_of(with_keys(public_jwk("ES256")), token()) == "algorithm_not_allowed"


def test_a_shared_secret_may_be_in_a_set() -> None:
    jwk = {"kty": "oct", "kid": "s", "k": segment(SECRET.encode())}
    for algorithm in HASHES:
        with_keys(jwk).verify(token(GOOD, SECRET, algorithm, kid="s"), NOW)
    only = with_keys({**jwk, "alg": "HS512"})
    only.verify(token(GOOD, SECRET, "HS512"), NOW)
    assert code_of(only, token(GOOD, SECRET, "HS256")) == "algorithm_not_allowed"


def test_of_a_private_key_only_the_public_half_is_kept() -> None:
    for algorithm in ALL:
        [key] = parse_jwks(jwks(private_jwk(algorithm)))
        assert "Private" not in type(key.material).__name__
        with_keys(private_jwk(algorithm)).verify(signed_with(algorithm, GOOD), NOW)


def test_keys_of_no_use_are_left_out() -> None:
    ed448 = "-" * 76
    small = {"kty": "RSA", "n": segment(b"\xff" * 128), "e": "AQAB"}
    useless: list[Any] = [
        "x",
        None,
        {},
        {"kty": "XYZ"},
        {"kty": "RSA"},
        {"kty": "RSA", "n": 5, "e": None},
        small,
        {"kty": "EC", "crv": "P-384", "x": segment(b"x" * 48), "y": segment(b"y" * 48)},
        {"kty": "EC", "crv": "P-256", "x": segment(b"x" * 32), "y": segment(b"y" * 32)},
        {"kty": "OKP", "crv": "Ed448", "x": ed448},
        {"kty": "OKP", "crv": "X25519", "x": segment(b"x" * 32)},
        {"kty": "oct", "k": ""},
        {"kty": "oct", "k": segment(public_pem("RS256"))},
        public_jwk("RS256", use="enc"),
        public_jwk("RS256", key_ops=["encrypt"]),
        public_jwk("RS256", alg="RS512"),
        public_jwk("ES256", alg="none"),
    ]
    with pytest.raises(InvalidJwks, match=f"none of its {len(useless)} keys"):
        parse_jwks(jwks(*useless))
    [key] = parse_jwks(jwks(*useless, public_jwk("ES256", use="sig", key_ops=["verify"], alg="ES256", kid=5)))
    assert (key.kid, key.algorithms) == (None, ("ES256",))


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"keys": {}}', '{"keys": []}', "[" * 100_000, '{"kty": "oct"}'])
def test_what_is_no_set_of_keys_is_a_clear_error(text: str) -> None:
    with pytest.raises(InvalidJwks, match="cannot be used"):
        parse_jwks(text)


_JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists)


@given(
    st.dictionaries(
        st.sampled_from(["kty", "crv", "n", "e", "x", "y", "k", "kid", "alg", "use", "key_ops"]),
        st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "AQAB", "RS256"]) | _JSON,
    )
)
def test_any_json_is_a_key_or_none(jwk: dict[str, Any]) -> None:
    try:
        parse_jwks(jwks(jwk))
    except InvalidJwks:
        return


async def test_a_missing_key_is_asked_for_and_a_known_one_is_not() -> None:
    source = Keys(to_come=parse_jwks(jwks(public_jwk("ES256"))))
    verifier = TokenVerifier([SECRET], {}, source=source)
    text = signed_with("ES256", GOOD)
    assert code_of(verifier, text) == "key_unknown"
    await verifier.prepare(text)
    verifier.verify(text, NOW)
    await verifier.prepare(text)
    await verifier.prepare(token())
    await verifier.prepare("garbage")
    await verifier.prepare("")
    await verifier.prepare(signed(b'{"alg":"none","kid":"x"}', b"{}"))
    await verifier.prepare(signed_with("ES256", GOOD, "stranger"))
    assert source.asked == [True, False, False, False, False, False, True]


async def test_without_a_source_there_is_nothing_to_prepare() -> None:
    await TokenVerifier([SECRET], {}).prepare("garbage")


def test_what_is_signed_here_opens_here() -> None:
    for algorithm in HMAC_ALGORITHMS:
        claims = {"exp": NOW + 60, "text": "ünï", "list": [1, {"a": None}]}
        assert TokenVerifier([SECRET], {}).verify(sign(claims, SECRET, algorithm), NOW).claims == claims
    with pytest.raises(UnusableSecret):
        sign({}, "")


def test_a_token_can_be_read_without_being_believed() -> None:
    header, claims = read_unverified(f" {token(GOOD, 'another', kid='k')}\n")
    assert (header, claims) == ({"alg": "HS256", "typ": "JWT", "kid": "k"}, GOOD)
    for text in ("", "garbage", "a.b.c", token([])):
        with pytest.raises(TokenRefused):
            read_unverified(text)


def test_all_faults_are_told_in_their_order() -> None:
    faults = TokenVerifier([SECRET], VALIDATORS).faults({"exp": 1, "iss": "x"}, NOW)
    assert [(fault.code, fault.claim) for fault in faults] == [
        ("token_expired", None),
        ("claim_mismatch", "iss"),
        ("claim_missing", "nbf"),
    ]
