"""What `manage.py check` says of secrets and keys."""

from __future__ import annotations

import pytest
from django.core.checks import CheckMessage
from django.test import override_settings

from streaming.checks import check_secret

SECRET = "a secret of more than thirty-two bytes"
PEM = "-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----"


def checked(secret: str = SECRET, *, previous: tuple[str, ...] = (), jwks: str = "", secure: bool = True) -> list[str]:
    return [str(message.id) for message in messages(secret, previous=previous, jwks=jwks, secure=secure)]


def messages(
    secret: str = SECRET, *, previous: tuple[str, ...] = (), jwks: str = "", secure: bool = True
) -> list[CheckMessage]:
    with override_settings(
        SECURE_CHANNELS=secure, JWT_SECRET=secret, JWT_PREVIOUS_SECRETS=list(previous), JWT_JWKS=jwks
    ):
        return check_secret()


def test_secure_channels_without_a_secret_are_an_error_that_says_how_to_make_one() -> None:
    [message] = messages("")
    assert (message.id, message.is_serious()) == ("streaming.E001", True)
    assert "manage.py token secret" in str(message.hint)


def test_older_secrets_alone_are_not_enough() -> None:
    assert checked("", previous=(SECRET,)) == ["streaming.E001"]


def test_keys_are_as_good_as_a_secret() -> None:
    assert checked("", jwks='{"keys": []}') == []
    assert checked("", jwks="https://issuer.example/jwks.json") == []


def test_a_key_of_another_kind_is_an_error() -> None:
    [message] = messages(PEM)
    assert (message.id, message.is_serious()) == ("streaming.E002", True)
    assert checked(previous=(PEM,)) == ["streaming.E002"]


def test_a_short_secret_is_a_warning_that_does_not_show_it() -> None:
    short = "s" * 31
    [message] = messages(short)
    assert (message.id, message.is_serious()) == ("streaming.W001", False)
    assert short not in str(message)
    assert checked(previous=("old",)) == ["streaming.W001"]


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://issuer.example/jwks.json", ["streaming.W002"]),
        ("http://127.0.0.1:8080/jwks.json", []),
        ("https://issuer.example/jwks.json", []),
    ],
)
def test_keys_over_plain_http_are_a_warning(url: str, wanted: list[str]) -> None:
    assert checked(jwks=url) == wanted


def test_a_good_secret_or_none_needed_is_silent() -> None:
    assert checked() == []
    assert checked("", secure=False) == []
