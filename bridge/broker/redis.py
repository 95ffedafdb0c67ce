"""Redis and Valkey: whole shipments by LPUSH, and a look into the lists themselves."""

from __future__ import annotations

import inspect
import json
import re
from collections import defaultdict
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import redis
from redis.exceptions import NoPermissionError, ResponseError

from bridge import message
from bridge.broker import events
from bridge.broker.portable import PortableBroker
from bridge.broker.sifting import OF_A_ROW, Unsendable, sifted
from bridge.errors import RefusedError, SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from bridge.broker.address import Address
    from bridge.queries.dispatch import Claimed, Suspect

__all__ = ["RedisBroker"]

_HEADER = re.compile(rb'"bridge(?:_bundle)?": ?"([0-9a-f: -]+)"')  # a message's body is base64 text
_TOKEN = re.compile(rb"(?<!\d)\d{1,19}:([0-9a-f-]{36})")  # of a longer row of digits nothing is tried twice
_LOOK = 2000  # messages of a list looked at, oldest first; four windows
_LOOK_BYTES = 32 << 20  # of them, about: a window of large jobs would fill a drainer's memory with each look
_ORDER = timedelta(seconds=5)  # drainers mark what they published this much out of order, at most
_MOST_PRIORITY = 9  # kombu's bound
_NEVER = 1 << 40  # seconds, more than since 1970
# redis-py before 5.3 wants to know for which command it gives a connection, and does nothing with it; later ones warn of that.
_NAMELESS = inspect.signature(redis.ConnectionPool.get_connection).parameters["command_name"].default is not inspect.Parameter.empty


class _Plan(NamedTuple):
    """A shipment, made: numbers and texts of the jobs of each list, and what goes the portable way."""

    lists: dict[str, list[tuple[int, bytes]]]
    routed: list[tuple[Claimed, message.Envelope]]


class RedisBroker(PortableBroker):
    """Connects as kombu does (TCP, TLS, socket, Sentinel), then writes what kombu would have written, many at once."""

    ranked: ClassVar[bool] = False  # its lists are served lowest number first

    def __init__(self, address: Address, **options: Any) -> None:
        # Whoever waits for a message gives back what others have held for longer than this. How long they may, their application knows.
        super().__init__(address.with_options(visibility_timeout=_NEVER), **options)

    @staticmethod
    def defaults(timeout: float) -> dict[str, Any]:
        """Without a limit of its own a Redis that has stopped answering is waited for without end."""
        return {"socket_timeout": timeout, "socket_connect_timeout": timeout}

    def _open(self) -> None:
        super()._open()
        # kombu's own client puts the prefix before the keys of some commands; ours sees the keys as they are.
        self._client = redis.Redis(connection_pool=self.channel.pool)
        self._prefix = str(self.channel.global_keyprefix)
        self._key = lru_cache(maxsize=1024)(self._list_of)
        if self._info("cluster").get("cluster_enabled"):
            raise SettingError(
                f"broker {self.address.shown} is a node of a Redis Cluster, which Celery cannot use as a broker",
                "give it a single Redis or Valkey, or several under Sentinel",
            )

    def publish(self, jobs: Sequence[Claimed]) -> list[Unsendable]:
        """One LPUSH a list; its answer is the confirmation. Topic and fanout exchanges go the portable way."""
        plan, unsendable = self._sifted(jobs)
        confirmed: list[int] = []
        with self.sending(confirmed):
            refused = self._push(plan.lists, confirmed)
            self.send_each(plan.routed, confirmed)
        if refused:
            hint = "delete or rename the key that is no list, or let the broker's user write it"
            raise RefusedError(f"broker {self.address.shown} refused list {', '.join(refused)}", hint, confirmed=confirmed)
        return unsendable

    def _sifted(self, jobs: Sequence[Claimed]) -> tuple[_Plan, list[Unsendable]]:
        """The messages of all of which one can be made; only where one cannot, each is tried by itself."""
        try:
            return self._plan(jobs), []
        except OF_A_ROW:
            made, unsendable = sifted(jobs, lambda job: self._plan([job]))
            return self._plan([job for job, _ in made]), unsendable

    def _plan(self, jobs: Sequence[Claimed]) -> _Plan:
        direct: list[Claimed] = []
        routed: list[Claimed] = []
        for job in jobs:
            (routed if job.properties and json.loads(job.properties).get("exchange") else direct).append(job)
        lists: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
        for job, text in zip(direct, message.redis_messages(direct, self.signer), strict=True):
            lists[self._key(job.queue, _priority(job.properties))].append((job.seq, text))
        return _Plan(lists, [(job, self.envelope(job)) for job in routed])

    def _push(self, lists: dict[str, list[tuple[int, bytes]]], confirmed: list[int]) -> list[str]:
        """Send, and note what was taken; the keys that take no messages, each with Redis' word."""
        refused = []
        for key, messages in lists.items():
            try:
                self._lpush(key, [text for _, text in messages])
            except ResponseError as error:
                if not _is_of_its_key(error):
                    raise
                refused.append(f"{key}: {error}")
            else:
                confirmed += (seq for seq, _ in messages)
        return refused

    def _lpush(self, key: str, texts: Sequence[bytes]) -> None:
        """One LPUSH in one piece. The client would send it in pieces of six kilobytes, for which a shipment takes four times the time."""
        pool = self._client.connection_pool
        connection: Any = pool.get_connection() if _NAMELESS else pool.get_connection("LPUSH")
        try:
            connection.send_packed_command([b"".join(connection.pack_command("LPUSH", key, *texts))])
            connection.read_response()
        finally:
            pool.release(connection)

    def _list_of(self, queue: str, priority: int) -> str:
        return f"{self._prefix}{self.channel._q_for_pri(queue, priority)}"  # noqa: SLF001 - kombu's own name of the list

    def send_events(self, group: list[dict[str, Any]], *, always: bool) -> bool:  # noqa: ARG002 - sending is asking
        """PUBLISH to the channel of Celery's event exchange; its answer is the number of listeners."""
        topic = self.channel._get_publish_topic(events.EXCHANGE, events.ROUTING_KEY)  # noqa: SLF001 - kombu's own name of it
        with self.translated():
            text = message.redis_event(group, events.EXCHANGE, events.ROUTING_KEY)
            return int(self._client.publish(f"{self._prefix}{topic}", text)) > 0

    def missing(self, suspects: Sequence[Suspect]) -> set[UUID]:
        """A list gives its oldest message first: what is older than a message still in it, and not in it, has left it."""
        lists: dict[str, list[Suspect]] = defaultdict(list)
        for suspect in suspects:
            lists[self._key(suspect.queue, _priority(suspect.properties))].append(suspect)
        gone: set[UUID] = set()
        for key, listed in lists.items():
            gone |= self._missing_from(key, listed)
        return gone

    def _missing_from(self, key: str, suspects: list[Suspect]) -> set[UUID]:
        with self.translated():
            try:
                depth = self._depth(key)
                oldest: list[bytes] = self._client.lrange(key, -depth, -1)  # type: ignore[assignment]
            except ResponseError as error:
                if _is_of_its_key(error):
                    return set()  # nothing can be said of what is no list, or not ours to read
                raise
        # Each header of that name: an earlier one may stand inside another header.
        found = {token.decode() for text in oldest for header in _HEADER.finditer(text) for token in _TOKEN.findall(header[1])}
        absent = [suspect for suspect in suspects if str(suspect.token) not in found]
        if len(oldest) < depth:
            return {suspect.token for suspect in absent}
        seen = [suspect.published_at for suspect in suspects if str(suspect.token) in found]
        if not seen:
            return set()
        return {suspect.token for suspect in absent if suspect.published_at < max(seen) - _ORDER}

    def _depth(self, key: str) -> int:
        """How many messages of a list to look at: fewer where they are large. A list that is shorter is looked at whole."""
        try:
            size = int(self._client.memory_usage(key) or 0)
            return _LOOK if size <= _LOOK_BYTES else max(1, min(_LOOK, _LOOK_BYTES * int(self._client.llen(key)) // size))
        except NoPermissionError:
            return _LOOK

    def describe(self) -> dict[str, Any]:
        """Version, memory and what happens when memory is full, as far as we may ask."""
        with self.translated():
            server, memory = self._info("server"), self._info("memory")
        valkey = server.get("valkey_version")
        return {
            **super().describe(),
            **({"server": "valkey"} if valkey else {}),
            "version": valkey or server.get("redis_version"),
            "maxmemory": memory.get("maxmemory"),
            "maxmemory_policy": memory.get("maxmemory_policy"),
            "used_memory": memory.get("used_memory"),
        }

    def _info(self, section: str) -> dict[str, Any]:
        """A part of INFO; nothing where it is not ours to ask."""
        try:
            return dict(self._client.info(section))
        except NoPermissionError:
            return {}


def _priority(properties: str | None) -> int:
    """The priority that kombu's name of a list counts by."""
    priority = json.loads(properties).get("priority") if properties else None
    return min(max(priority or 0, 0), _MOST_PRIORITY)


def _is_of_its_key(error: ResponseError) -> bool:
    """Whether the refusal is about this key alone: it holds something else, or is not ours to write. All others are the server's."""
    return isinstance(error, NoPermissionError) or str(error).startswith("WRONGTYPE")
