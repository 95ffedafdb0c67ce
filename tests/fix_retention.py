"""Jobs that ended long ago, and cleanups of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import uuid

    from fix_sql import Session

__all__ = ["cleaned", "end_long_ago", "ids", "partitions", "run_until"]


def end_long_ago(db: Session, age: str, status: str = "succeeded", **options: Any) -> uuid.UUID:
    """A job that ended so long ago, in the partition of that day."""
    db.do("select bridge.make_days(((now() - %s::interval) at time zone 'utc')::date, 1)", age)
    identity = db.enqueue(max_attempts=1, **options)
    claim, run = db.run(queue=options.get("queue", "celery"))
    if status == "failed":
        db.fail(claim, run)
    else:
        db.finish(claim, run, status)
    times = "finished_at = now() - %s::interval, created_at = now() - %s::interval - interval '1 hour'"
    db.do(f"update bridge.finished set {times} where id = %s", age, age, identity)
    return identity


def cleaned(db: Session, later: str = "0", *, dry_run: bool = False) -> dict[str, tuple[str, int, int, int]]:
    """Clean up at a later moment; status, deleted, kept and archived of each table (found, of a dry run)."""
    query = f"""
        select table_name, max(status), sum({"found" if dry_run else "deleted"}), sum(kept), sum(archived)
        from bridge.cleanup(%s, clock_timestamp() + %s::interval) group by 1"""
    return {row[0]: tuple(row[1:]) for row in db.rows(query, dry_run, later)}  # type: ignore[misc]


def ids(db: Session, relation: str = "finished") -> set[Any]:
    return {row[0] for row in db.rows(f"select id from bridge.{relation}")}


def partitions(db: Session, parent: str = "finished") -> list[str]:
    query = "select relid::text from pg_partition_tree('bridge.' || %s) where isleaf order by 1"
    return [row[0].removeprefix("bridge.") for row in db.rows(query, parent)]


def run_until(db: Session, phase: str, table: str = "finished") -> None:
    """Begin a cleanup and make its steps until a day of a table is in a phase: look, copy, swap."""
    db.do("select bridge.begin_cleanup('test')")
    at = "select count(*) from bridge.cleanup_log where status = 'running' and table_name ^@ %s and todo->>'phase' = %s"
    while not db.one(at, table, phase):
        assert db.one("select bridge.cleanup_step(2)") is True
