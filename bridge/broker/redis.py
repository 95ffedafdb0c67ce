"""Redis and Valkey: whole shipments by LPUSH, and a look into the lists themselves."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import redis
from redis.exceptions import NoPermissionError

from bridge import message
from bridge.broker import events
from bridge.broker.portable import PortableBroker
from bridge.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from bridge.queries.dispatch import Claimed, Suspect

__all__ = ["RedisBroker"]

_TOKEN = re.compile(rb'"bridge": ?"\d+:([0-9a-f-]{36})"')
_LOOK = 2000  # messages of a list looked at, oldest first; four windows
_ORDER = timedelta(seconds=5)  # drainers mark what they published this much out of order, at most
_MOST_PRIORITY = 9  # kombu's bound


class RedisBroker(PortableBroker):
    """Connects as kombu does (TCP, TLS, socket, Sentinel), then writes what kombu would have written, many at once."""

    ranked: ClassVar[bool] = False  # its lists are served lowest number first

    @staticmethod
    def defaults(timeout: float) -> dict[str, Any]:
        """Without a limit of its own a Redis that has stopped answering is waited for without end."""
        return {"socket_timeout": timeout, "socket_connect_timeout": timeout}

    def _open(self) -> None:
        super()._open()
        # kombu's own client puts the prefix before the keys of some commands; ours sees the keys as they are.
        self._client = redis.Redis(connection_pool=self.channel.pool)
        self._prefix = str(self.channel.global_keyprefix)
        if self._info("cluster").get("cluster_enabled"):
            raise SettingError(
                f"broker {self.address.shown} is a node of a Redis Cluster, which Celery cannot use as a broker",
                "give it a single Redis or Valkey, or several under Sentinel",
            )

    def publish(self, jobs: Sequence[Claimed]) -> None:
        """One LPUSH a list; its answer is the confirmation. Topic and fanout exchanges go the portable way."""
        direct: list[Claimed] = []
        routed: list[Claimed] = []
        for job in jobs:
            (routed if job.properties and json.loads(job.properties).get("exchange") else direct).append(job)
        confirmed: list[int] = []
        with self.translated(confirmed):
            self._push(direct, confirmed)
            self.send_each(routed, confirmed)

    def _push(self, jobs: Sequence[Claimed], confirmed: list[int]) -> None:
        lists: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
        for job, text in zip(jobs, message.redis_messages(jobs, self.signer), strict=True):
            lists[self._key(job.queue, job.properties)].append((job.seq, text))
        for key, messages in lists.items():
            self._client.lpush(key, *(text for _, text in messages))
            confirmed += (seq for seq, _ in messages)

    def _key(self, queue: str, properties: str | None) -> str:
        priority = json.loads(properties).get("priority") if properties else None
        bounded = min(max(priority or 0, 0), _MOST_PRIORITY)
        return f"{self._prefix}{self.channel._q_for_pri(queue, bounded)}"  # noqa: SLF001 - kombu's own name of the list

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
            lists[self._key(suspect.queue, suspect.properties)].append(suspect)
        gone: set[UUID] = set()
        for key, listed in lists.items():
            gone |= self._missing_from(key, listed)
        return gone

    def _missing_from(self, key: str, suspects: list[Suspect]) -> set[UUID]:
        with self.translated():
            oldest: list[bytes] = self._client.lrange(key, -_LOOK, -1)  # type: ignore[assignment]
        found = {match[1].decode() for text in oldest if (match := _TOKEN.search(text))}
        absent = [suspect for suspect in suspects if str(suspect.token) not in found]
        if len(oldest) < _LOOK:
            return {suspect.token for suspect in absent}
        seen = [suspect.published_at for suspect in suspects if str(suspect.token) in found]
        if not seen:
            return set()
        return {suspect.token for suspect in absent if suspect.published_at < max(seen) - _ORDER}

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
