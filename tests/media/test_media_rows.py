"""The rows of the media system that need a database and nobody who works: uploads, pace, views, settings, alerts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Connection = psycopg.Connection[tuple[Any, ...]]


def upload(media: Connection, count: int = 1, job_type: str = "process") -> None:
    insert = "insert into uploads (path, job_type) select format('/srv/%%s.jpg', gen_random_uuid()), %s from generate_series(1, %s)"
    media.execute(insert, (job_type, count))


def one(media: Connection, query: str, params: Sequence[Any] = ()) -> Any:
    row = media.execute(query, params).fetchone()
    return row and row[0]


def starts(media: Connection) -> list[float]:
    """Seconds from the first job's slot to each job's."""
    rows = media.execute("select extract(epoch from run_at - min(run_at) over ()) from upload_jobs order by run_at").fetchall()
    return [round(float(row[0]), 1) for row in rows]


@pytest.mark.media("media-01")
def test_an_uploaded_file_becomes_a_queued_job_of_the_same_transaction(media: Connection) -> None:
    with media.transaction(force_rollback=True):
        upload(media)
        assert one(media, "select status from jobs") == "queued"
    assert one(media, "select count(*) from jobs") == 0


@pytest.mark.media("media-01")
def test_an_upload_to_another_bucket_makes_no_job(media: Connection) -> None:
    media.execute("insert into uploads (bucket, path) values ('avatars', '/srv/me.jpg')")
    assert one(media, "select count(*) from jobs") == 0


@pytest.mark.media("media-01")
def test_the_same_version_of_a_file_makes_one_job(media: Connection) -> None:
    first = one(media, "select add_upload('/srv/a.jpg', 'v1')")
    assert one(media, "select add_upload('/srv/a.jpg', 'v1')") is None
    assert one(media, "select add_upload('/srv/a.jpg', 'v2')") not in {None, first}
    assert one(media, "select count(*) from jobs") == 2


@pytest.mark.media("media-01")
def test_who_may_upload_needs_no_other_right(media: Connection) -> None:
    with media.transaction():
        media.execute("set local role bridge_producer")
        media.execute("insert into media.uploads (path) values ('/srv/a.jpg')")
    assert one(media, "select count(*) from jobs") == 1


@pytest.mark.media("media-03")
@pytest.mark.parametrize("iterations", [5, 10, 20])
def test_no_more_than_the_batch_size_starts_within_one_tick(media: Connection, iterations: int) -> None:
    if iterations != 5:
        media.execute("select set('iterations', %s)", (str(iterations),))
    upload(media, iterations + 1)
    assert sum(start < 60 for start in starts(media)) == iterations
    assert starts(media)[-1] == 60


@pytest.mark.media("media-04")
@pytest.mark.parametrize("delay", [1000, 500, 200])
def test_jobs_of_one_batch_start_a_delay_apart(media: Connection, delay: int) -> None:
    if delay != 1000:
        media.execute("select set('delay', %s)", (str(delay),))
    upload(media, 3)
    assert starts(media) == [0, delay / 1000, 2 * delay / 1000]


@pytest.mark.media("media-04")
def test_without_bounds_every_job_is_due_at_once(media: Connection) -> None:
    media.execute("select set('iterations', '0'), set('delay', '0')")
    upload(media, 50)
    assert media.execute("select distinct bridge_status from jobs").fetchall() == [("queued",)]


@pytest.mark.media("media-05")
@pytest.mark.parametrize("job_type", ["process", "thumbnail", "analysis", "card"])
def test_an_upload_chooses_the_kind_of_its_job(media: Connection, job_type: str) -> None:
    upload(media, job_type=job_type)
    row = media.execute("select v.task, j.job_type, v.kwargs->>'path' = j.path from jobs j join bridge.jobs v on v.id = j.id").fetchone()
    assert row == (f"media.{job_type}", job_type, True)


@pytest.mark.media("media-05")
def test_an_unknown_kind_of_job_is_refused(media: Connection) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="upload_job_type_is_known"):
        upload(media, job_type="embroider")


@pytest.mark.media("media-07")
@pytest.mark.parametrize(
    ("settings", "capacity"),
    [
        ({}, 300),
        ({"iterations": "20", "delay": "200"}, 1200),
        ({"schedule": "*/5 * * * *"}, 60),
        ({"iterations": "0"}, 3600),
        ({"iterations": "0", "delay": "0"}, None),
    ],
)
def test_capacity_follows_from_the_settings(media: Connection, settings: dict[str, str], capacity: int | None) -> None:
    for name, value in settings.items():
        media.execute("select set(%s, %s)", (name, value))
    assert one(media, "select capacity()") == capacity


@pytest.mark.media("media-12")
def test_a_new_rate_counts_at_once_also_for_jobs_that_wait(media: Connection) -> None:
    upload(media, 12)
    assert sum(start < 60 for start in starts(media)) == 5
    assert "capacity 600 jobs an hour" in one(media, "select set('iterations', '10')")
    assert one(media, "select count(*) from upload_jobs where run_at <= clock_timestamp()") == 10


@pytest.mark.media("media-12")
def test_a_setting_that_an_operator_changed_survives_a_new_installation(media: Connection, install_media: Callable[[], None]) -> None:
    media.execute("select set('iterations', '20')")
    install_media()
    assert one(media, "select value from settings where name = 'iterations'") == "20"


@pytest.mark.media("media-12")
@pytest.mark.parametrize(("name", "value", "state"), [("iterations", "-1", "JB001"), ("delay", "soon", "JB001"), ("speed", "9", "JB002")])
def test_a_setting_that_cannot_be_is_refused(media: Connection, name: str, value: str, state: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        media.execute("select set(%s, %s)", (name, value))
    assert caught.value.sqlstate == state
    assert caught.value.diag.message_hint


@pytest.mark.media("media-18")
@pytest.mark.media("media-19")
def test_a_pause_holds_uploads_back_and_deletes_nothing(media: Connection) -> None:
    claim = "select count(*) from bridge.claim(gen_random_uuid(), 'celery', gen_random_uuid())"
    assert "for all its tasks" in one(media, "select pause()")
    upload(media)
    assert (one(media, "select status from jobs"), one(media, claim)) == ("queued", 0)
    media.execute("select resume()")
    assert one(media, claim) == 1


@pytest.mark.media("media-18")
def test_a_queue_of_its_own_is_paused_without_holding_others(media: Connection) -> None:
    media.execute("select set('queue', 'media')")
    assert "for all its tasks" not in one(media, "select pause()")
    media.execute("select bridge.enqueue('other.task')")
    assert one(media, "select count(*) from bridge.claim(gen_random_uuid(), 'celery', gen_random_uuid())") == 1


@pytest.mark.media("media-21")
def test_not_running_is_answered_check_by_check(media: Connection) -> None:
    media.execute("select pause()")
    found = dict(media.execute("select check_name, ok from diagnose()").fetchall())
    assert (found["queue is not paused"], found["a worker is alive"], found["no job is stuck"]) == (False, False, True)
    assert one(media, "select bool_and(remedy <> '') from diagnose()")


@pytest.mark.media("media-26")
def test_environments_have_names_and_secrets_of_their_own(media: Connection) -> None:
    media.execute("select set('environment', 'staging'), set('secret_env', 'CRON_SECRET_STAGING')")
    assert one(media, "select cron_name('process-flashcard-jobs')") == "process-flashcard-jobs-staging"
    with pytest.raises(psycopg.Error, match="environment is 'Two words'"):
        media.execute("select set('environment', 'Two words')")


@pytest.mark.media("media-27")
def test_a_kind_of_job_can_have_a_pace_of_its_own(media: Connection) -> None:
    media.execute("select set('schedule', '30 seconds'), set('iterations', '20'), set('delay', '200'), set('delay.thumbnail', '0')")
    upload(media, 3)
    upload(media, 3, "thumbnail")
    assert one(media, "select count(*) from upload_jobs where lane = 'thumbnail' and run_at <= clock_timestamp()") == 3
    assert one(media, "select count(*) from upload_jobs where lane = '' and run_at > clock_timestamp()") >= 1
    assert one(media, "select capacity()") == 2400


def grow_old(media: Connection) -> None:
    media.execute("update bridge.job set created_at = created_at - interval '61 minutes'")


@pytest.mark.media("media-28")
def test_more_than_a_hundred_jobs_queued_for_an_hour_raise_one_alert(media: Connection) -> None:
    media.execute("select set('alert_url', 'https://example.org/hook')")
    upload(media, 101)
    assert one(media, "select check_alerts()").endswith("no alert")
    grow_old(media)
    assert one(media, "select check_alerts()").endswith("alert sent")
    assert one(media, "select check_alerts()").endswith("alert sent")
    rows = media.execute(
        "select kwargs->>'url', kwargs->'payload'->>'queued', priority from bridge.jobs where task = 'media.webhook'"
    ).fetchall()
    assert rows == [("https://example.org/hook", "101", 9)]


@pytest.mark.media("media-28")
def test_a_hundred_are_no_alert_and_without_an_address_it_is_only_told(media: Connection) -> None:
    upload(media, 100)
    grow_old(media)
    assert one(media, "select check_alerts()").endswith("no alert")
    media.execute("select set('alert_above', '99')")
    assert "alert, not sent" in one(media, "select check_alerts()")
    assert one(media, "select count(*) from bridge.jobs where task = 'media.webhook'") == 0


@pytest.mark.media("media-31")
def test_the_database_holds_the_name_of_a_secret_and_never_the_secret(media: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRON_SECRET", "hush")
    media.execute("select set('alert_url', 'https://example.org/hook'), set('alert_above', '0')")
    upload(media)
    grow_old(media)
    media.execute("select check_alerts()")
    row = media.execute(
        "select kwargs->>'token_env', kwargs::text like '%%hush%%' from bridge.jobs where task = 'media.webhook'", ()
    ).fetchone()
    assert row == ("CRON_SECRET", False)
