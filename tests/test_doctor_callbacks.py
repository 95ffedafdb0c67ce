"""The doctor on webhooks and notifications that nobody took."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fix_doctor import Doctor

from bridge.doctor import Grade

if TYPE_CHECKING:
    from fix_sql import Session


def test_messages_that_failed_for_good_are_yellow_until_they_arrive(db: Session) -> None:
    doctor = Doctor(db.dsn)
    db.do("select bridge.set_webhook('hook', 'https://hooks.example.org')")
    assert doctor.look("callbacks").found == "1 callbacks; no message has failed within a day"
    db.do("select bridge.try_callback('hook')")
    db.fail(*db.run(), message="webhook https://hooks.example.org answered 503", final=True)
    finding = doctor.look("callbacks")
    found = "1 messages have failed within a day, the last to hook: webhook https://hooks.example.org answered 503"
    assert (finding.status, finding.found, finding.value) == (Grade.WARNING, found, 1.0)
    db.do("select bridge.retry(id) from bridge.deliveries")
    db.finish(*db.run())
    assert doctor.look("callbacks").status is Grade.OK
