"""`manage.py token`: make tokens, see what the server thinks of one, and make a secret."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from django.conf import settings
from django.core.management import BaseCommand, CommandError

from streaming.errors import TOKEN_REFUSALS, TokenRefused, UnusableSecret
from streaming.middleware import configured_verifier
from streaming.tokens import HMAC_ALGORITHMS, TokenVerifier, read_unverified, sign

_EPILOG = """
    manage.py token secret                                          a new JWT_SECRET
    manage.py token make --role anon --expires 15m                  a token that is signed with it
    manage.py token make --sub alice --claim 'roles=["a"]' --expires never
    manage.py token check eyJhbGciOi...                             would the server take it, and if not, why
"""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_NO_SECRET = (
    "JWT_SECRET is not set, so there is nothing to sign with; make a secret with: manage.py token secret, "  # noqa: S105
    "or pass one with --secret"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked at, and what was found."""

    name: str
    is_ok: bool
    detail: str


class Command(BaseCommand):
    """What is asked for goes to stdout, words about it to stderr: ``TOKEN=$(manage.py token make)`` works."""

    help = "Make tokens, see what the server thinks of one, and make a secret."
    requires_system_checks: list[str] = []  # noqa: RUF012  (Django's); it is of use before the settings are right

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        """Show the examples as they are written."""
        return super().create_parser(
            prog_name, subcommand, epilog=_EPILOG, formatter_class=RawDescriptionHelpFormatter, **kwargs
        )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What can be said on the command line."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="make | check | secret")
        make = actions.add_parser("make", help="sign a token; it has the claims of JWT_CLAIM_VALIDATORS as well")
        make.add_argument("--role", help="the claim role")
        make.add_argument("--sub", help="the claim sub: whom the token is for")
        make.add_argument(
            "--claim",
            type=_claim,
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="another claim; VALUE is JSON, or else text; may be repeated",
        )
        make.add_argument("--expires", type=_duration, default="1h", help="90s, 15m, 1h (default), 30d or never")
        make.add_argument("--algorithm", choices=HMAC_ALGORITHMS, default=HMAC_ALGORITHMS[0], help="default: HS256")
        check = actions.add_parser("check", help="say whether the server would take a token, and why not")
        check.add_argument("token", help="the token; - reads it from stdin")
        check.add_argument("--json", action="store_true", help="for programs; the exit code is 1 for a refused token")
        for subparser in (make, check):
            subparser.add_argument("--secret", help="this secret and no other (default: what the settings say)")
        actions.add_parser("secret", help="make a secret, and say how to set it")

    def handle(self, *, action: str, **options: Any) -> None:
        """Do it."""
        match action:
            case "make":
                self._make(options)
            case "check":
                self._check(options)
            case "secret":
                self._secret()

    def _secret(self) -> None:
        self.stdout.write(f"JWT_SECRET={secrets.token_urlsafe(48)}")
        self._say(
            "Put this line into the file .env beside manage.py, or into the environment, and restart.\n"
            'To replace a secret without refusing its tokens, set JWT_PREVIOUS_SECRETS=["the old one"] as well.'
        )

    def _say(self, text: str) -> None:
        self.stderr.write(text, style_func=str)  # Django would make it red

    def _make(self, options: Mapping[str, Any]) -> None:
        secret = options["secret"] or settings.JWT_SECRET
        if not secret:
            raise CommandError(_NO_SECRET)
        now = int(time.time())
        claims = {name: value for name, value in settings.JWT_CLAIM_VALIDATORS.items() if name != "exp"}
        claims |= {name: options[name] for name in ("role", "sub") if options[name] is not None}
        claims["iat"] = now
        if options["expires"] is not None:
            claims["exp"] = now + options["expires"]
        claims |= dict(options["claim"])
        try:
            token = sign(claims, secret, options["algorithm"])
            verifier = _verifier(options["secret"])
        except UnusableSecret as error:
            raise CommandError(str(error)) from None
        self.stdout.write(token)
        self._say(f"{json.dumps(claims, ensure_ascii=False)}, {_end(claims, now)}")
        try:
            verifier.verify(token, now)
        except TokenRefused as refused:
            self._say(self.style.WARNING(f"The server would refuse it: {refused}"))

    def _check(self, options: Mapping[str, Any]) -> None:
        token: str = options["token"]
        if token == "-":  # noqa: S105
            token = sys.stdin.read()
        try:
            verifier = _verifier(options["secret"])
        except UnusableSecret as error:
            raise CommandError(str(error)) from None
        now = time.time()
        asyncio.run(verifier.prepare(token))
        try:
            verifier.verify(token, now)
            refused = None
        except TokenRefused as error:
            refused = error
        header: dict[str, Any] | None
        claims: dict[str, Any] | None
        try:
            header, claims = read_unverified(token)
        except TokenRefused:
            header = claims = None
        checks = _checks(verifier, refused, claims, now)
        if options["json"]:
            answer = {
                "accepted": refused is None,
                "code": refused.code if refused else None,
                "reason": str(refused) if refused else None,
                "header": header,
                "claims": claims,
                "checks": [asdict(check) for check in checks],
                "secured": settings.SECURE_CHANNELS,
            }
            self.stdout.write(json.dumps(answer, ensure_ascii=False))
        else:
            self._explain(header, claims, checks, refused)
        if refused is not None:
            sys.exit(1)

    def _explain(
        self,
        header: Mapping[str, Any] | None,
        claims: Mapping[str, Any] | None,
        checks: list[Check],
        refused: TokenRefused | None,
    ) -> None:
        for title, part in (("header", header), ("claims", claims)):
            if part is not None:
                self.stdout.write(title)
                self.stdout.writelines(f"  {name} = {json.dumps(part[name], ensure_ascii=False)}\n" for name in part)
        self.stdout.write("checks")
        for check in checks:
            word = self.style.SUCCESS("ok ") if check.is_ok else self.style.ERROR("bad")
            self.stdout.write(f"  {word}  {check.name}: {check.detail}")
        if refused is None:
            self.stdout.write(self.style.SUCCESS("The server would take this token."))
        else:
            self.stdout.write(self.style.ERROR(f"The server would refuse it ({refused.code}): {refused}."))
        if not settings.SECURE_CHANNELS:
            self.stdout.write("SECURE_CHANNELS is off here: tokens are not looked at, and everybody may listen.")


def _verifier(secret: str | None) -> TokenVerifier:
    """What the server checks tokens with, whether it does so or not; with that secret instead, if there is one."""
    if secret:
        return TokenVerifier([secret], settings.JWT_CLAIM_VALIDATORS, leeway_s=settings.JWT_LEEWAY_S)
    verifier = configured_verifier(even_if_open=True)
    assert verifier is not None
    return verifier


def _checks(
    verifier: TokenVerifier, refused: TokenRefused | None, claims: Mapping[str, Any] | None, now: float
) -> list[Check]:
    """What the verifier looks at, in its order, and what it found. It stops at the first fault; here all are told."""
    if claims is None:
        assert refused is not None
        return [Check("form", False, str(refused))]
    faults = list(verifier.faults(claims, now))
    signed = refused is None or refused.code in {fault.code for fault in faults}
    if signed:
        checks = [Check("signature", True, "made with a configured secret or key")]
    else:
        assert refused is not None
        checks = [Check("signature", False, str(refused))]
    times = [fault for fault in faults if fault.code in ("exp_invalid", "token_expired")]
    if times:
        checks.append(Check("exp", False, f"{TOKEN_REFUSALS[times[0].code]}; {_end(claims, now)}"))
    else:
        checks.append(Check("exp", True, _end(claims, now)))
    wrong = {fault.claim: fault for fault in faults if fault.claim is not None}
    for name, wanted in settings.JWT_CLAIM_VALIDATORS.items():
        shown = json.dumps(wanted, ensure_ascii=False)
        if name in wrong:
            found = json.dumps(claims[name], ensure_ascii=False) if name in claims else "missing"
            checks.append(Check(name, False, f"JWT_CLAIM_VALIDATORS asks for {shown}, and it is {found}"))
        elif name != "exp":
            checks.append(Check(name, True, f"is {shown}, as JWT_CLAIM_VALIDATORS asks for"))
    return checks


def _end(claims: Mapping[str, Any], now: float) -> str:
    """When a token ends, in words."""
    if "exp" not in claims:
        return "it does not expire"
    exp = claims["exp"]
    if isinstance(exp, bool) or not isinstance(exp, int | float) or not 0 <= exp < 253402300800:
        return f"exp is {json.dumps(exp, ensure_ascii=False)}"
    moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(exp))
    return (
        f"it expires in {_words(exp - now)} ({moment})"
        if exp > now
        else f"it expired {_words(now - exp)} ago ({moment})"
    )


def _words(seconds: float) -> str:
    for name, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        # 90 minutes say more than one hour.
        if seconds >= 2 * size or name == "second" or seconds == size:
            number = round(seconds / size)
            return f"{number} {name}" if number == 1 else f"{number} {name}s"
    raise AssertionError


def _duration(text: str) -> int | None:
    if text == "never":
        return None
    if (match := re.fullmatch(r"([0-9]{1,9})([smhd])", text)) is None:
        raise ArgumentTypeError(f"{text!r} is no duration; right would be 90s, 15m, 1h, 30d or never")
    return int(match[1]) * _UNITS[match[2]]


def _claim(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ArgumentTypeError(f"{text!r} is no claim; right would be NAME=VALUE")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value
