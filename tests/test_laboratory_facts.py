"""What a run of the laboratory asks while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laboratory import facts

if TYPE_CHECKING:
    from fix_sql import Session


def test_a_run_waits_for_what_ended_jobs_are_still_to_bring(db: Session) -> None:
    db.do("select bridge.begin_chord('c', '{}', null, 'celery', null), bridge.size_chord('c', 2)")
    db.do("select bridge.end_part('c', gen_random_uuid(), 0)")
    assert facts.unended(db.connection) == 0, "of its other part nothing is left"
    db.do("select bridge.end_part('c', gen_random_uuid(), 1)")
    assert facts.unended(db.connection) == 1, "its body is to come"
    db.rows("select * from bridge.take_chord('c')")
    db.enqueue()
    assert facts.unended(db.connection) == 1
