"""The rows of the media system that need somebody who works: a real drainer and a real worker on the shipped files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fix_servers import wait_for_value, wait_until

from tasks.media.inbox import scan

if TYPE_CHECKING:
    from collections.abc import Callable

    from endpoint import Endpoint
    from fix_servers import StartDrainer, StartWorker

Connection = psycopg.Connection[tuple[Any, ...]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def working(media: Connection, drainer: StartDrainer, worker: StartWorker, tmp_path: Path) -> Connection:
    """The database of a drainer and a worker, without bounds on the pace."""
    media.execute("select set('iterations', '0'), set('delay', '0')")
    drainer()
    worker(concurrency=1, env={"MEDIA_OUTPUT": str(tmp_path / "output"), "MEDIA_ANALYSIS_URL": ""})
    return media


@pytest.fixture
def processed(working: Connection, media_dsn: str, samples: Path) -> Connection:
    """The same after the sample files went through."""
    scan(working, samples, set())
    wait_for_value(media_dsn, "select count(*) from jobs where status = 'queued'", value=0, timeout=60)
    return working


def by_name(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    return {Path(row[0]).name: row[1] for row in rows}


@pytest.mark.media("media-05")
@pytest.mark.media("media-06")
def test_good_files_end_as_done_and_a_corrupt_one_as_failed_at_its_first_attempt(processed: Connection) -> None:
    rows = processed.execute("select path, status from jobs order by created_at, updated_at").fetchall()
    done = dict.fromkeys(("bees.pdf", "meadow.jpg", "pendulum.mp4", "signet.png"), "done")
    assert by_name(rows) == {**done, "broken.jpg": "failed"}
    failed = processed.execute("select attempts, error_message from jobs where path like '%broken.jpg'").fetchone()
    assert failed
    assert failed[0] == 1
    assert failed[1].startswith("broken.jpg: is a corrupt jpeg")

    row = processed.execute("select result, upload_id::text from jobs where path like '%bees.pdf'").fetchone()
    assert row
    result = row[0]
    assert (result["upload_id"], result["type"], result["pages"], result["title"]) == (row[1], "pdf", 3, "Bees on the roof")
    assert all(Path(result[name]).is_file() for name in ("thumbnail", "card"))


@pytest.mark.media("media-16")
@pytest.mark.media("media-17")
@pytest.mark.media("media-22")
@pytest.mark.media("media-25")
def test_the_runbooks_questions_after_a_run_are_answered_truly(processed: Connection) -> None:
    hour = (
        "SELECT COUNT(*) FILTER (WHERE status='done'), COUNT(*) FILTER (WHERE status='failed'),"
        " COUNT(*) FILTER (WHERE status='queued') FROM jobs WHERE updated_at > NOW() - INTERVAL '1 hour'"
    )
    by_minute = "SELECT DATE_TRUNC('minute', updated_at), COUNT(*) FROM jobs WHERE status='done' GROUP BY 1 ORDER BY 1 DESC"
    assert processed.execute(hour).fetchone() == processed.execute("select * from job_stats_hourly").fetchone()
    assert processed.execute(by_minute).fetchall() == processed.execute("select * from job_rate_per_minute order by minute desc").fetchall()
    assert processed.execute("select completed, still_queued from job_stats_hourly").fetchone() == (4, 0)
    rows = processed.execute("select path, status from worker_pull where worker is not null").fetchall()
    assert by_name(rows)["broken.jpg"] == "failed"
    said = processed.execute("select message from worker_log where path like '%bees.pdf' order by at").fetchall()
    assert [message for (message,) in said] == ["decoding", "analysing", "drawing the card"]
    assert processed.execute("select message from worker_log where path like '%broken.jpg'").fetchall() == [("decoding",)]
    remedy = processed.execute("select remedy from job_failures where path like '%broken.jpg'").fetchone()
    assert remedy
    assert remedy[0].startswith("replace the file")


@pytest.mark.media("media-10")
def test_the_smoke_test_follows_a_file_to_its_end_and_says_why_it_failed(working: Connection, samples: Path) -> None:
    notices: list[str] = []
    working.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    working.execute("call smoke_test(%s)", (str(samples / "signet.png"),))
    assert " is queued (" in notices[0]
    assert " is done (succeeded)" in notices[-1]

    with pytest.raises(psycopg.Error, match=r"is failed .* broken\.jpg: is a corrupt jpeg"):
        working.execute("call smoke_test(%s)", (str(samples / "broken.jpg"),))


@pytest.mark.media("media-05")
def test_each_kind_of_job_makes_its_part(working: Connection, media_dsn: str, samples: Path) -> None:
    for kind in ("thumbnail", "analysis", "card"):
        working.execute("select add_upload(%s, version => %s, job_type => %s)", (str(samples / "pendulum.mp4"), kind, kind))
    wait_for_value(media_dsn, "select count(*) from jobs where status = 'done'", value=3, timeout=60)
    results = dict(working.execute("select job_type, result from jobs").fetchall())
    made = {kind: {"thumbnail", "analysis", "card"} & set(result) for kind, result in results.items()}
    assert made == {"thumbnail": {"thumbnail"}, "analysis": {"thumbnail", "analysis"}, "card": {"thumbnail", "analysis", "card"}}


def test_a_busy_analysis_endpoint_is_asked_again_by_the_jobs_retry_policy(
    media: Connection, media_dsn: str, drainer: StartDrainer, worker: StartWorker, endpoint: Endpoint, samples: Path, tmp_path: Path
) -> None:
    endpoint.status = 503
    drainer()
    worker(concurrency=1, env={"MEDIA_OUTPUT": str(tmp_path / "output"), "MEDIA_ANALYSIS_URL": endpoint.url})
    media.execute("select add_upload(%s)", (str(samples / "signet.png"),))
    wait_for_value(media_dsn, "select bridge_status from jobs where attempts = 1", value="scheduled", timeout=30)
    endpoint.status = 200
    media.execute("select bridge.retry(id) from jobs")
    wait_for_value(media_dsn, "select status from jobs", value="done", timeout=30)
    assert media.execute("select attempts, result->'analysis'->>'title' from jobs").fetchone() == (2, "A meadow")


@pytest.mark.media("media-24")
def test_a_stuck_job_is_published_by_hand(media: Connection, dsn: str, redis_url: str, samples: Path) -> None:
    media.execute("select add_upload(%s)", (str(samples / "signet.png"),))
    env = {**os.environ, "BRIDGE_DATABASE_URL": dsn, "BRIDGE_BROKER_URL": redis_url}
    done = subprocess.run(
        [ROOT / "tasks/media/sql/ops/trigger-worker.sh"], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert media.execute("select bridge_status from jobs").fetchone() == ("published",)


@pytest.mark.media("media-23")
def test_a_missing_secret_ends_the_webhook_at_once_with_its_name(working: Connection, media_dsn: str) -> None:
    kwargs = '{"url": "http://127.0.0.1:9/hook", "payload": {}, "token_env": "CRON_SECRET_UNSET"}'
    working.execute("select bridge.enqueue('media.webhook', kwargs => %s)", (kwargs,))
    wait_for_value(media_dsn, "select status from bridge.jobs", value="failed", timeout=30)
    row = working.execute("select attempts, error->>'message' from bridge.jobs").fetchone()
    assert row
    assert row[0] == 1
    assert row[1].startswith("CRON_SECRET_UNSET is not set in the worker's environment")


def test_a_file_dropped_into_a_watched_folder_becomes_one_job(media: Connection, tmp_path: Path, samples: Path) -> None:
    seen: set[tuple[str, str]] = set()
    assert scan(media, tmp_path, seen) == 0
    (tmp_path / "a.png").write_bytes((samples / "signet.png").read_bytes())
    (tmp_path / ".hidden.png").touch()
    assert [scan(media, tmp_path, seen), scan(media, tmp_path, seen), scan(media, tmp_path, set())] == [1, 0, 0]
    assert media.execute("select path, status from jobs").fetchall() == [(str(tmp_path / "a.png"), "queued")]


def test_a_file_that_is_still_being_copied_waits_for_a_later_scan(media: Connection, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert scan(media, tmp_path, set(), settle=3600) == 0


@pytest.mark.timeout(60)
def test_the_inbox_watches_until_it_is_told_to_end(media: Connection, dsn: str, tmp_path: Path, launcher: Any) -> None:
    import sys

    (tmp_path / "in").mkdir()
    command = [sys.executable, "-m", "tasks.media.inbox", str(tmp_path / "in"), "--interval", "0.1", "--settle", "0"]
    watcher = launcher.start("inbox", command, {}, dsn=dsn, broker_url="redis://127.0.0.1:9/0")
    (tmp_path / "in/a.png").touch()
    counted: Callable[[], Any] = lambda: media.execute("select 1 from jobs").fetchone()  # noqa: E731
    assert wait_until(counted) == (1,)
    watcher.stop()
    assert "uploads added" in watcher.log_text()
