"""Redis and Valkey: whole shipments by LPUSH, and a look into the lists themselves."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bridge import message
from bridge.broker import events
from bridge.broker.portable import PortableBroker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from bridge.queries.dispatch import Claimed, Suspect

__all__ = ["RedisBroker"]

_TOKEN = re.compile(rb'"bridge": ?"\d+:([0-9a-f-]{36})"')
_LOOK = 2000  # messages of a list looked at, oldest first; two windows
_ORDER = timedelta(seconds=5)  # drainers mark what they published this much out of order, at most


class RedisBroker(PortableBroker):
    """Connects as kombu does (TCP, TLS, socket, Sentinel, key prefix), then writes what kombu would have written, many at once."""

    def __init__(self, url: str, *, timeout: float, events_mode: events.Mode = "auto") -> None:
        super().__init__(url, timeout=timeout, events_mode=events_mode)
        self._client = self.channel._create_client()  # noqa: SLF001 - as kombu makes it: TLS, socket, Sentinel, key prefix

    def publish(self, jobs: Sequence[Claimed]) -> None:
        """One LPUSH a list; its answer is the confirmation. Topic and fanout exchanges go the portable way."""
        lists: dict[str, list[bytes]] = defaultdict(list)
        routed = [job for job in jobs if job.properties and json.loads(job.properties).get("exchange")]
        direct = [job for job in jobs if job not in routed] if routed else jobs
        for job, text in zip(direct, message.redis_messages(direct), strict=True):
            lists[self._key(job.queue, job.properties)].append(text)
        with self.translated():
            for key, texts in lists.items():
                self._client.lpush(key, *texts)
        if routed:
            super().publish(routed)

    def _key(self, queue: str, properties: str | None) -> str:
        priority = json.loads(properties).get("priority") if properties else None
        return str(self.channel._q_for_pri(queue, priority or 0))  # noqa: SLF001 - kombu's own name of the list

    def send_events(self, group: list[dict[str, Any]], *, always: bool) -> bool:  # noqa: ARG002 - sending is asking
        """PUBLISH to the channel of Celery's event exchange; its answer is the number of listeners."""
        topic = self.channel._get_publish_topic(events.EXCHANGE, events.ROUTING_KEY)  # noqa: SLF001 - kombu's own name of it
        with self.translated():
            return int(self._client.publish(topic, message.redis_event(group, events.EXCHANGE, events.ROUTING_KEY))) > 0

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
            oldest: list[bytes] = self._client.lrange(key, -_LOOK, -1)
        found = {match[1].decode() for text in oldest if (match := _TOKEN.search(text))}
        absent = [suspect for suspect in suspects if str(suspect.token) not in found]
        if len(oldest) < _LOOK:
            return {suspect.token for suspect in absent}
        seen = [suspect.published_at for suspect in suspects if str(suspect.token) in found]
        if not seen:
            return set()
        return {suspect.token for suspect in absent if suspect.published_at < max(seen) - _ORDER}

    def describe(self) -> dict[str, Any]:
        """Version, memory and what happens when memory is full."""
        with self.translated():
            server, memory = self._client.info("server"), self._client.info("memory")
        return {
            **super().describe(),
            "version": server.get("redis_version"),
            "maxmemory": memory.get("maxmemory"),
            "maxmemory_policy": memory.get("maxmemory_policy"),
            "used_memory": memory.get("used_memory"),
        }
