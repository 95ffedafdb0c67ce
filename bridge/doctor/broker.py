"""Is the broker there, and does it keep what it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.broker import open_broker
from bridge.broker.shortcomings import UNFIT
from bridge.doctor.finding import Finding, error, from_exception, ok, one_line, warning
from bridge.errors import SettingError
from bridge.settings import without_password

if TYPE_CHECKING:
    from bridge.doctor.subject import Subject

__all__ = ["reachable"]

_SAFE = "noeviction"
_KEEP = "redis-cli config set maxmemory-policy noeviction, and the same in redis.conf"


def reachable(subject: Subject) -> Finding:
    """Connect, and see what it cannot do, and what it does when its memory is full."""
    url = subject.settings.broker_url
    try:
        subject.broker = open_broker(subject.settings)
        facts = subject.broker.describe()
    except SettingError as problem:
        return from_exception("broker", problem)
    except Exception as problem:  # noqa: BLE001 - each transport raises kinds of its own
        subject.broker = None
        return error(
            "broker", f"cannot reach {without_password(url)}: {one_line(problem)}", "check BRIDGE_BROKER_URL and that the broker runs"
        )
    found = " ".join(str(part) for part in (facts.get("server") or facts["kind"], facts.get("version"), "answers at", facts["url"]) if part)
    if cannot := subject.broker.shortcomings:
        found += "".join(f"; it cannot {one}" for one in cannot)
        if UNFIT.intersection(cannot):
            return warning("broker", found, "take Redis, Valkey or RabbitMQ, or try yourself that nothing is lost with it")
    return _memory(
        found, facts.get("maxmemory_policy"), facts.get("maxmemory") or 0, facts.get("used_memory") or 0, subject.limits.memory_used
    )


def _memory(found: str, policy: str | None, limit: int, used: int, most: float) -> Finding:
    share = used / limit if limit else None
    if policy not in (None, _SAFE):
        words = f"{found}; maxmemory-policy is {policy}"
        if limit:
            return error("broker", f"{words}: it throws queues away when it is full ({used} of {limit} bytes)", _KEEP, value=share)
        return warning("broker", f"{words}: it would throw queues away if it had a maxmemory", _KEEP, value=share)
    if share is not None and share > most:
        return warning(
            "broker", f"{found}; {used} of {limit} bytes are used, then it refuses messages",
            'raise maxmemory, or see what else is in it; a smaller setting "window" keeps more jobs in Postgres', value=share,
        )  # fmt: skip
    return ok("broker", f"{found}; {policy}" if policy else found, value=share)
