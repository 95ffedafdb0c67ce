"""The doctor on circuit breakers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fix_doctor import Doctor

from bridge.doctor import Grade

if TYPE_CHECKING:
    from fix_sql import Session


def test_a_breaker_is_yellow_until_it_closes(db: Session) -> None:
    doctor = Doctor(db.dsn)
    assert doctor.look("breakers").found == "there are none"
    db.do("select bridge.set_breaker('celery', minimum => 1)")
    assert (doctor.look("breakers").status, doctor.look("breakers").found) == (Grade.OK, "1 closed")
    db.enqueue(max_attempts=1)
    db.fail(*db.run())
    db.tick()
    finding = doctor.look("breakers")
    assert (finding.status, finding.value) == (Grade.WARNING, 1)
    assert finding.found.startswith("queue celery is open: 1 of 1 attempts failed since ")
    assert "bridge breakers reset" in finding.remedy
    db.do("select bridge.reset_breaker('celery')")
    assert doctor.look("breakers").status is Grade.OK
