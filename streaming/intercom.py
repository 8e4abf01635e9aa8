"""One process asks another to do something, and hears what came of it.

Questions travel through the channel layer, so they reach whoever the changes reach: other processes through Redis, this
one without it. An answer is not kept for anybody: who asks waits for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import secrets
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, Final

from channels.layers import BaseChannelLayer, get_channel_layer

from streaming.errors import CommandFailed, ProcessSilent
from streaming.roster import process_name

logger = logging.getLogger(__name__)

ASK, ANSWER, TELL = "intercom.ask", "intercom.answer", "intercom.tell"
EVERYBODY: Final = "walcast..everybody"
"""The group of all processes. No topic has a group with two dots in a row: clients cannot send here."""

RETRY_S: Final = 1.0

Handler = Callable[[Any], Any | Awaitable[Any]]
"""Takes the arguments of a command, and returns its answer: values that msgpack can carry (`None`, numbers, text,
bytes, lists, dictionaries). The text of what it raises goes to who asked, so it must hold no secret."""


class Intercom:
    """This process's end. Commands are heard while `run` runs; the others know it by the name ``process``."""

    def __init__(self, layer: BaseChannelLayer, process: str | None = None) -> None:
        self._layer, self.process = layer, process or process_name()
        self._handlers: dict[str, Handler] = {}
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._channel = ""
        self.ready = asyncio.Event()
        """Set while commands are heard."""

    def on(self, command: str, handler: Handler) -> None:
        """From now on ``handler`` performs this command; it may be a coroutine function."""
        self._handlers[command] = handler

    async def ask(self, process: str, command: str, arguments: Any = None, *, timeout_s: float = 3.0) -> Any:
        """Have ``process`` perform ``command``, and return its answer.

        Raises `ProcessSilent` if none comes in time (it has ended, or Redis is away), and `CommandFailed` with its
        words if it could not do it.
        """
        if process == self.process:
            return _unpacked(await self._perform(command, arguments))
        number = secrets.token_hex(8)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        question = {"type": ASK, "command": command, "arguments": arguments, "number": number}
        try:
            async with asyncio.timeout(timeout_s):
                await self.ready.wait()
                await self._layer.group_send(_group(process), question | {"reply_to": self._channel})
                reply = await answer
        except TimeoutError:
            raise ProcessSilent(process, command, timeout_s) from None
        except Exception as error:  # whatever a layer's driver raises
            raise ProcessSilent(process, command, timeout_s, reason=str(error)) from error
        finally:
            del self._waiting[number]
        return _unpacked(reply)

    async def tell_everybody(self, command: str, arguments: Any = None) -> None:
        """Have every process perform ``command``, this one too; nobody answers, and a layer that is away raises."""
        await self._layer.group_send(EVERYBODY, {"type": TELL, "command": command, "arguments": arguments})

    async def run(self) -> None:
        """Hear commands and answers until cancelled; a layer that is away is waited for."""
        while True:
            try:
                self._channel = await self._layer.new_channel()
                for group in (_group(self.process), EVERYBODY):
                    await self._layer.group_add(group, self._channel)
                self.ready.set()
                while True:
                    message = await self._layer.receive(self._channel)
                    if (task := asyncio.current_task()) is not None and task.cancelling():
                        raise asyncio.CancelledError  # redis-py may swallow the one that came meanwhile
                    self._take(message)
            except Exception as error:  # whatever a layer's driver raises
                logger.warning("channel layer away", extra={"error": error, "retry_s": RETRY_S})
                self.ready.clear()
                await asyncio.sleep(RETRY_S)
            except asyncio.CancelledError:
                self.ready.clear()
                raise

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("type") == ANSWER:
            answer = self._waiting.get(message.get("number", ""))
            if answer is not None and not answer.done():
                answer.set_result(message)
        elif message.get("type") in (ASK, TELL):
            # In a task of its own: a slow command holds up no other.
            task = asyncio.get_running_loop().create_task(self._answer(message), name="intercom command")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: dict[str, Any]) -> None:
        reply = await self._perform(str(message.get("command")), message.get("arguments"))
        if message["type"] == TELL:
            return
        try:
            answer = {"type": ANSWER, "number": message["number"]}
            await self._layer.send(message["reply_to"], answer | reply)
        except Exception as error:  # whatever a layer's driver raises, or a value that it cannot carry
            logger.warning("command not answered", extra={"command": message.get("command"), "error": error})

    async def _perform(self, command: str, arguments: Any) -> dict[str, Any]:
        handler = self._handlers.get(command)
        if handler is None:
            return {"failed": "this process knows no such command; run one version of Walcast everywhere"}
        try:
            result = handler(arguments)
            return {"result": await result if inspect.isawaitable(result) else result}
        except Exception as error:  # whatever went wrong, who asked is told
            logger.warning("command failed", extra={"command": command, "error": error})
            return {"failed": f"{type(error).__name__}: {error}"}


def _unpacked(reply: dict[str, Any]) -> Any:
    if "failed" in reply:
        raise CommandFailed(reply["failed"])
    return reply.get("result")


def _group(process: str) -> str:
    return f"walcast..process.{hashlib.sha256(process.encode()).hexdigest()[:32]}"


@lru_cache(maxsize=1)
def configured_intercom() -> Intercom:
    """This process's intercom, on the channel layer of the settings."""
    layer = get_channel_layer()
    assert layer is not None
    return Intercom(layer)
