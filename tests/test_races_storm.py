"""Many sessions at once on the same few dozen jobs: no deadlock, no error but ours, nobody who waits for ever, nothing lost, nothing torn.

The gate storms for a few seconds; BRIDGE_TEST_EFFORT=100 does it a hundred times as long, each time from another seed, which it prints.
"""

from __future__ import annotations

import random

import pytest
from fix_effort import EFFORT
from invariants import assert_sound
from races_storm import SESSIONS, Storm

SECONDS = 4.0
WORLDS = 36


@pytest.mark.timeout(120 + 3 * EFFORT * SECONDS)
def test_many_sessions_that_call_by_chance_neither_tear_lose_nor_hold_up_anything(dsn: str) -> None:
    seed = 1 if EFFORT == 1 else random.randrange(1 << 30)  # noqa: S311 - it is only to be another
    storm = Storm(dsn, seed, WORLDS)
    print(f"seed {seed}")  # noqa: T201 - to be repeated
    storm.rage(SECONDS * EFFORT)
    print(dict(storm.answers))  # noqa: T201 - how much of it did something
    assert storm.faults == [], f"seed {seed}"
    assert storm.answers["done"] > SESSIONS
    storm.settle()
    assert storm.stuck() == {}, f"seed {seed}"
    assert storm.lost() == [], f"seed {seed}"
    assert_sound(dsn)
