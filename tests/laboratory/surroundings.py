"""What a run has around it where nobody says: a broker, and what the world has beside the usual, drawn from the seed."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fix_full import NoDiskError, SmallDisk
from fix_rabbitmq import HOW_TO_GET_IT, find_programs

from bridge.local.binaries import find_postgres
from bridge.local.broker import HOW_TO_GET_IT as HOW_TO_GET_REDIS
from bridge.local.broker import find_redis
from bridge.local.pooler import HOW_TO_GET_IT as HOW_TO_GET_PGBOUNCER
from bridge.local.pooler import find_pgbouncer
from laboratory.runner import HAVING
from laboratory.world import Needs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SHARE = 0.35  # of the runs have a thing


def draw(seed: int) -> tuple[str, tuple[str, ...]]:
    """The broker and words of `HAVING` that fit each other: the same seed, the same ones, on every machine."""
    chance = random.Random(f"{seed}: surroundings")  # noqa: S311
    has, words = Needs(broker=chance.choice(("redis", "rabbitmq"))), []
    for word in chance.sample(sorted(HAVING), len(HAVING)):
        if chance.random() < SHARE and has.fits(HAVING[word]):
            has = has.with_(HAVING[word])
            words.append(word)
    return str(has.broker), tuple(sorted(words))


def at_hand(
    broker: str, having: tuple[str, ...], say: Callable[[str], None], lacks: Mapping[str, Callable[[], str | None]] | None = None
) -> tuple[str, tuple[str, ...]]:
    """The same without what this machine does not have, which is told with the remedy."""
    lacking = {word: why for word, ask in (lacks or LACKS).items() if word in (broker, *having) and word != "redis" and (why := ask())}
    for word, why in lacking.items():
        say(f"without {word}, which the seed has drawn: {why}")
    return "redis" if "rabbitmq" in lacking else broker, tuple(word for word in having if word not in lacking)


def _redis() -> str | None:
    return None if find_redis() else HOW_TO_GET_REDIS


def _rabbitmq() -> str | None:
    return None if find_programs() else HOW_TO_GET_IT


def _pgbouncer() -> str | None:
    return None if find_pgbouncer() else HOW_TO_GET_PGBOUNCER


def _cron() -> str | None:
    found = find_postgres()
    return None if found is not None and found.cron else "apt-get install postgresql-15-cron"


def _disk() -> str | None:
    with TemporaryDirectory() as folder:
        try:
            SmallDisk(Path(folder) / "try", 1 << 20).remove()
        except NoDiskError as error:
            return str(error)
    return None


LACKS = {"redis": _redis, "rabbitmq": _rabbitmq, "pgbouncer": _pgbouncer, "cron": _cron, "disk": _disk}
