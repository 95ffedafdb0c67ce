"""The fuzzer's targets with its examples, each of them whole and broken in some ways; `scripts/fuzz` goes on from there."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from celery.result import allow_join_result
from fix_effort import EFFORT
from fuzzing.targets import EXAMPLES, Targets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.testing.databases import Databases


@pytest.fixture(scope="module")
def targets(databases: Databases, template: str) -> Iterator[Targets]:
    name = databases.create(template)
    with pytest.MonkeyPatch.context() as patch, allow_join_result():  # a worker in this process forbids it to all
        patch.setenv("BRIDGE_DATABASE_URL", databases.server.dsn_of(name))
        patch.setenv("BRIDGE_BROKER_URL", "memory://")
        yield Targets()
    databases.drop(name)


def broken(text: bytes, chance: random.Random) -> bytes:
    """Some bytes of it missing, twice there, or others."""
    start = chance.randrange(len(text) + 1)
    end = min(len(text), start + chance.randrange(8))
    new = chance.choice([b"", text[start:end] * 2, chance.randbytes(2), b"null", b'"', b"[", b"}", b"NaN", b"1e999", b'"\\ud800"', b"-1"])
    return text[:start] + new + text[end:]


@pytest.mark.parametrize("name", EXAMPLES)
def test_nothing_happens_that_may_not_happen(name: str, targets: Targets) -> None:
    target, chance = targets.all()[name], random.Random(name)  # noqa: S311 - the same broken ones every time
    for example in EXAMPLES[name]:
        target(example)
        if len(example) < 10_000:
            for _ in range(20 * EFFORT):
                target(broken(example, chance))
