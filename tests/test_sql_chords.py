"""Chords as the tables tell them: for how long one waits for its parts."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fix_sql import Session

PART = """
  select bridge.enqueue_message(%s, null, 'a.part', 'celery', 9::smallint, '[]', '{}', null, null, null, null, null, '{}', null,
    clock_timestamp() + interval '3 days', 'a.chord')
"""


@pytest.fixture
def chord(db: Session) -> uuid.UUID:
    """A chord that is over after a day, one part of which comes in three; the part's id."""
    identity = uuid.uuid4()
    db.do("select bridge.begin_chord('a.chord', '{}', null, 'celery', interval '1 day'), bridge.size_chord('a.chord', 2)")
    db.do(PART, identity)
    return identity


def chords(db: Session) -> int:
    """How many there are after two days."""
    db.tick(by="2 days")
    return int(db.one("select count(*) from bridge.chord"))


@pytest.mark.usefixtures("chord")
def test_a_chord_waits_as_long_as_its_parts_do(db: Session) -> None:
    assert chords(db) == 1


def test_a_chord_whose_time_is_over_and_none_of_whose_parts_is_to_come_is_forgotten(db: Session, chord: uuid.UUID) -> None:
    db.do("select bridge.cancel(%s)", chord)
    assert chords(db) == 0


def test_a_chord_without_a_time_of_its_own_waits_as_long_as_history_is_kept(db: Session) -> None:
    db.do("select bridge.begin_chord('a.chord', '{}', null, 'celery', null)")
    assert chords(db) == 1
    db.do("update bridge.setting set value = '60' where name = 'retention'")
    db.do("select bridge.begin_chord('a.chord', '{}', null, 'celery', null)")
    db.do("update bridge.tick_state set upkeep_at = '-infinity'")
    assert chords(db) == 0
