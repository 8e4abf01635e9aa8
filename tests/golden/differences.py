"""Where we answer otherwise than the original server, case by case, and why.

A recorded case that is not listed has to be answered alike, and a listed one has to differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Difference:
    """Why we answer otherwise, and how.

    ``ours`` are the parts of the answer that are not as they were recorded, ``frames`` pieces of the recorded frames
    (their JSON with sorted keys) and what stands there instead.
    """

    reason: str
    ours: Mapping[str, Any] = field(default_factory=dict)
    frames: Mapping[str, str] = field(default_factory=dict)


def _ok(ref: str, topic: str = "realtime:*") -> str:
    return f'{{"event":"phx_reply","payload":{{"response":{{}},"status":"ok"}},"ref":"{ref}","topic":"{topic}"}}'


_SURVIVES = (
    "an event that no channel knows, access_token included, ended the subscription; it is ignored, as a stock client "
    "sends some of these and expects to stay"
)
_ANSWERED = (
    "a request that cannot be read was a crash (500); it is answered, and what nobody asks about is not looked at"
)
_CLAIMS = (
    "a configured claim that the token lacks, and an exp that is no number, passed; every configured claim has to be "
    "there and equal"
)
_REFUSED = {"status": 403, "upgrade": "", "sec-websocket-accept": "", "frames": []}
_ACCEPTED = {"status": 101, "upgrade": "websocket", "sec-websocket-accept": "s3pplmbitxaq9kygzzhzrbk+xoo="}
_WAITS = (
    "without its database the server ended after a few attempts, and every socket with it; it tries again with growing "
    "pauses, and the sockets stay"
)
_TYPES = "the type was missing from a fixed table: its number stood for its name, and the value was left out"
_PINNED = (
    "values were printed as the role's settings say; those of the session are pinned, so that clients can rely on one "
    "form (SESSION_TIMEZONE chooses the time zone)"
)

DIFFERENCES: dict[str, Difference] = {
    "access_token_joined": Difference(_SURVIVES, {"frames": [_ok("1"), _ok("3", "phoenix"), _ok("5")]}),
    "v0172_access_token_joined": Difference(_SURVIVES, {"frames": [_ok("1"), _ok("3", "phoenix"), _ok("5")]}),
    "broadcast_event_joined": Difference(_SURVIVES, {"frames": [_ok("1")]}),
    "phx_error_from_client": Difference(_SURVIVES, {"frames": [_ok("1"), _ok("3", "phoenix")]}),
    "v2_custom_event_crash": Difference(
        _SURVIVES, {"frames": ['["1","1","realtime:*","phx_reply",{"response":{},"status":"ok"}]']}
    ),
    "handshake_vsn_array_param": Difference(_ANSWERED, {"status": 403}),
    "handshake_bad_query_utf8": Difference(_ANSWERED, _ACCEPTED),
    "secure_claims_not_json": Difference(_ANSWERED, {"status": 403}),
    "handshake_root_path": Difference(
        "the upgrade was not looked at, and the page came; whoever asks for a websocket where there is none hears 404",
        {"status": 404, "body": "Not Found", "x-frame-options": None, "x-content-type-options": None},
    ),
    "handshake_realtime_v1_path": Difference(
        "a gateway mapped this path to /socket; it is served, so that no gateway is needed",
        _ACCEPTED | {"body": "", "content-type": None},
    ),
    "secure_exp_string_empty": Difference(_CLAIMS, _REFUSED),
    "secure_exp_object": Difference(_CLAIMS, _REFUSED),
    "claims_iss_missing": Difference(_CLAIMS, _REFUSED),
    "claims_no_claims": Difference(_CLAIMS, _REFUSED),
    "ws_close_1005_invalid": Difference(
        "a client that closes with a code it must not send has ended the conversation itself: no frame answers it",
        {"ws_frames": [{"type": "end of connection"}]},
    ),
    "ops_boot_db_unreachable": Difference(_WAITS, {"alive": True}),
    "ops_boot_db_missing": Difference(_WAITS, {"alive": True}),
    "ops_postgres_down": Difference(_WAITS, {"alive": True, "frames": []}),
    "ops_sigterm": Difference(
        "sockets were cut without a word after their phx_error; they are closed with a code that says why",
        {"close": 1012},
    ),
    "type_int4range": Difference(_TYPES, frames={"3904": '"int4range"', '"id": "1"': '"id": "1", "v": "[1,5)"'}),
    "type_jsonpath": Difference(_TYPES, frames={"4072": '"jsonpath"', '"id": "1"': r'"id": "1", "v": "$.\"a\""'}),
    "type_timestamptz_bc": Difference(
        "the year 44 BC became the year 44; a time that has no ISO form stays as PostgreSQL prints it",
        frames={"0044-03-15T12:00:00Z": "0044-03-15 12:00:00+00 BC"},
    ),
    "guc_timezone_st_johns": Difference(
        _PINNED,
        frames={"2021-06-25 14:20:09-02:30": "2021-06-25 16:50:09+00", "T14:20:09.25-02:30": "T16:50:09.25Z"},
    ),
    "guc_timezone_london": Difference(
        _PINNED, frames={"2021-06-25 17:50:09+01": "2021-06-25 16:50:09+00", "T17:50:09.25+01:00": "T16:50:09.25Z"}
    ),
    "guc_timezone_kathmandu": Difference(
        _PINNED,
        frames={"2021-06-25 22:35:09+05:45": "2021-06-25 16:50:09+00", "T22:35:09.25+05:45": "T16:50:09.25Z"},
    ),
    "guc_timezone_offset_with_seconds": Difference(
        _PINNED, frames={"1900-01-01T00:19:32+00:19": "1900-01-01T00:00:00Z"}
    ),
    "guc_intervalstyle_iso": Difference(_PINNED, frames={"P1Y2M3DT4H5M6S": "1 year 2 mons 3 days 04:05:06"}),
    "guc_extra_float_digits_0": Difference(_PINNED, frames={"1.2346": "1.23456789012345"}),
}

NOT_RUN: dict[str, str] = {}
"""Recorded cases that are not replayed, and why."""
