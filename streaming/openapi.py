"""The HTTP interface of broadcasts, described for machines.

Source: https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def _error(description: str, example: object) -> dict[str, Any]:
    content = {"schema": {"type": "object"}, "example": example}
    return {"description": description, "content": {"application/json": content}}


_BATCH = {
    "type": "object",
    "required": ["messages"],
    "properties": {"messages": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Message"}}},
}

_MESSAGE = {
    "type": "object",
    "required": ["topic", "event", "payload"],
    "properties": {
        "topic": {"type": "string", "description": "without the prefix realtime:", "examples": ["room:1"]},
        "event": {"type": "string", "examples": ["cursor"]},
        "payload": {"type": "object"},
        "private": {"type": "boolean", "default": False},
        "id": {"type": "string", "description": "arrives as meta.id beside the payload"},
    },
}

_UNAUTHORIZED = _error("no valid token with role and exp", {"message": "Unauthorized"})
_TOO_MANY = _error("over the limit of broadcasts", {"message": "You have exceeded your rate limit"})
_ACCEPTED = {"description": "handed to everybody who is in the room"}


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    try:
        release = version("walcast")
    except PackageNotFoundError:
        release = "0"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Walcast",
            "version": release,
            "description": "Broadcasts to the clients of realtime channels, without a websocket.",
        },
        "servers": [{"url": "/"}, {"url": "/realtime/v1"}],
        "security": [{"bearer": []}, {"apikey": []}],
        "paths": {
            "/api/broadcast": {
                "post": {
                    "operationId": "broadcastBatch",
                    "summary": "Broadcast several messages, all or none",
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Batch"}}},
                    },
                    "responses": {
                        "202": _ACCEPTED,
                        "400": _error("the body is no JSON", {"message": "Bad Request: the body is no JSON"}),
                        "401": _UNAUTHORIZED,
                        "413": _error("the body is too large to be read", {"message": "Payload Too Large"}),
                        "422": _error(
                            "a message cannot be sent; none was",
                            {"errors": {"messages": [{"payload": ["can't be blank"]}, {}]}},
                        ),
                        "429": _TOO_MANY,
                    },
                }
            },
            "/api/broadcast/{topic}/events/{event}": {
                "post": {
                    "operationId": "broadcastOne",
                    "summary": "Broadcast one message; the body is its payload",
                    "parameters": [
                        {"name": "topic", "in": "path", "required": True, "schema": {"type": "string"}},
                        {"name": "event", "in": "path", "required": True, "schema": {"type": "string"}},
                        {"name": "private", "in": "query", "schema": {"type": "boolean", "default": False}},
                    ],
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {"schema": {}},
                            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                        },
                    },
                    "responses": {
                        "202": _ACCEPTED,
                        "400": _error("the body is no JSON", {"message": "Bad Request: the body is no JSON"}),
                        "401": _UNAUTHORIZED,
                        "403": _error("the room is private", {"message": "Unauthorized"}),
                        "413": _error("the body is too large to be read", {"message": "Payload Too Large"}),
                        "415": _error(
                            "neither JSON nor bytes",
                            {"error": "Unsupported Media Type. Use application/json or application/octet-stream"},
                        ),
                        "422": _error("too large", {"errors": {"payload": ["Payload size exceeds tenant limit"]}}),
                        "429": _TOO_MANY,
                    },
                }
            },
        },
        "components": {
            "schemas": {"Batch": _BATCH, "Message": _MESSAGE},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "apikey": {"type": "apiKey", "in": "header", "name": "apikey"},
            },
        },
    }
