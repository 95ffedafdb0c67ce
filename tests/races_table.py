"""The table of races: every function that changes state, as one of two sessions calls it, and where it meets others."""

from __future__ import annotations

import re
from typing import NamedTuple

HELD = "held limited rated shared"
WAITING = f"blocked scheduled due ready {HELD} overdue claimed published"
FLYING = "claimed abandoned published stranded missing"
ENDED = "failed succeeded cancelled"
PART = "part planned guarded"  # a run that ends a chord, a slot of a schedule, a probe of a breaker
EVERYWHERE = f"{WAITING} abandoned stranded missing taken running orphaned doomed replaced stopping {ENDED}"
RUN = "running orphaned doomed stopping replaced several-running"
SLICE = "several-running several-orphaned several-stopping"  # both of one bundle, begun by one statement
# Both jobs, the first made first, or the one that is live.
SEQS = "array_remove(array[%(second_seq)s, %(seq)s]::bigint[], null)"
TOKENS = "array_remove(array[%(second_token)s, %(token)s]::uuid[], null)"
RUNS = "array_remove(array[%(second_run)s, %(run)s]::uuid[], null)"
BOTH = "array_remove(array[case when %(second_seq)s::bigint is not null then %(second)s::uuid end, %(job)s], null)"
CONTENT = "'a.task', %(queue)s, 9::smallint, '[2]', '{}', null, null, null, null, '{\"id\": 1, \"task\": \"a.task\"}', '{}'"


class Call(NamedTuple):
    """One way to call a function.

    sql: what a session says; the names of a world are filled in.
    stages: where a job has come to when this does something, or refuses to.
    skips: what another has in hand it leaves alone, or leaves to the tick.
    passes: it does so with all of it, and never waits.
    """

    sql: str
    stages: str
    skips: bool = False
    passes: bool = False


CALLS = {
    # what makes jobs
    "enqueue, key": Call("bridge.enqueue('a.task', queue => %(queue)s, unique_key => %(key)s)", "ready published running failed"),
    "enqueue, raise": Call(
        "bridge.enqueue('a.task', queue => %(queue)s, unique_key => %(key)s, on_conflict => 'raise')", "ready running failed"
    ),
    "enqueue, replace": Call(
        "bridge.enqueue('b.task', '[2]', queue => %(queue)s, unique_key => %(key)s, on_conflict => 'replace')", f"{WAITING} running"
    ),
    "enqueue, child": Call(
        "bridge.enqueue('a.task', queue => %(elsewhere)s, depends_on => array[%(job)s])", "ready running failed succeeded"
    ),
    "enqueue, member": Call("bridge.enqueue('a.task', queue => %(elsewhere)s, batch => %(batch)s)", "ready running failed"),
    "enqueue_many": Call(
        "bridge.enqueue_many(jsonb_build_array("
        "jsonb_build_object('task', 'a.task', 'queue', %(queue)s::text, 'unique_key', %(key)s::text)))",
        "ready running failed",
    ),
    "enqueue_page": Call(
        "bridge.enqueue_page(array["
        "jsonb_build_object('task', 'b.task', 'queue', %(queue)s::text, 'unique_key', '*', 'on_conflict', 'replace')::text],"
        " array[%(new)s], null, array['[]'], null, array[%(key)s], 1)",
        "ready published running",
    ),
    "enqueue_buffered": Call(
        "bridge.enqueue_buffered(json_build_array(json_build_object('id', %(new)s::uuid, 'job',"
        " json_build_object('task', 'a.task', 'queue', %(queue)s::text, 'unique_key', %(key)s::text))))",
        "ready running",
    ),
    "enqueue_flow": Call(
        "bridge.enqueue_flow(jsonb_build_array(jsonb_build_object('ref', 'a', 'task', 'a.task', 'queue', %(elsewhere)s::text,"
        " 'depends_on', jsonb_build_array(%(job)s::uuid))))",
        "running failed",
    ),
    "enqueue_message": Call(
        f"bridge.enqueue_message(%(job)s, null, {CONTENT}, null, null)", "ready running replaced failed succeeded cancelled"
    ),
    "never_ran": Call("bridge.never_ran(%(job)s, null, 'a.task', %(queue)s, '[]', '{}', null)", "replaced running failed"),
    # a drainer
    "claim": Call(
        "(select count(*) from bridge.claim(%(drainer)s, %(queue)s, %(second_shipment)s))",
        f"{WAITING} abandoned running failed guarded",
        skips=True,
        passes=True,
    ),
    "mark_published": Call(
        "bridge.mark_published(%(shipment)s, array[%(seq)s, %(second_seq)s]::bigint[])",
        "claimed abandoned published running several-claimed",
    ),
    "unclaim": Call(
        "bridge.unclaim(array[%(seq)s, %(second_seq)s]::bigint[], %(shipment)s)", "claimed abandoned published several-claimed"
    ),
    "mark_missing": Call("bridge.mark_missing(array[%(token)s, %(second_token)s]::uuid[])", "published missing running several-published"),
    "found again": Call("bridge.mark_missing('{}', array[%(token)s])", "missing"),
    "republish": Call(
        "(select count(*) from bridge.republish(%(drainer)s, %(second_shipment)s, array[%(token)s, %(second_token)s]::uuid[]))",
        "missing several-missing",
    ),
    "set_aside": Call("(select count(*) from bridge.set_aside(array[%(token)s, %(second_token)s]::uuid[]))", "missing several-missing"),
    "note_silent": Call("bridge.note_silent(array['w@silent'], array[%(queue)s])", "published missing"),
    "report_drainer": Call("bridge.report_drainer(%(drainer)s, 'd', 1, 'test', 1, clock_timestamp())", "published told"),
    # a worker
    "report_worker": Call(
        "bridge.report_worker(%(worker)s, %(name)s, 1, 'prefork', 2, array[%(queue)s], 'test', array[%(token)s], clock_timestamp())",
        f"published running orphaned stopping {SLICE}",
    ),
    "start": Call("bridge.start(%(seq)s, %(token)s, %(worker)s, 2)", f"{FLYING} taken running ready"),
    "finish": Call("bridge.finish(%(seq)s, %(run)s, 'succeeded', '1')", f"{RUN} failed {PART}"),
    "start_many": Call(
        f"cardinality(bridge.start_many({SEQS}, {TOKENS}, %(worker)s, 2, array[%(new)s, %(newer)s]))",
        f"{FLYING} taken running ready several-published",
    ),
    "start_many, again": Call(
        f"cardinality(bridge.start_many({SEQS}, {TOKENS}, %(worker)s, 2, {RUNS}))", "running stopping several-running several-stopping"
    ),
    "finish_many": Call(
        f"cardinality(bridge.finish_many({SEQS}, {RUNS}, {TOKENS}, {BOTH}, array['1', '2'], array[null, null]))",
        f"{RUN} failed {PART} several-orphaned several-stopping",
    ),
    "unbundle": Call(
        f"bridge.unbundle({TOKENS}, %(worker)s)", f"{FLYING} {RUN} several-published several-orphaned several-stopping", skips=True
    ),
    "unbundle, not alone": Call(
        f"bridge.unbundle({TOKENS}, %(worker)s, 1, false)", "published several-running several-stopping", skips=True
    ),
    "finish, failed": Call("bridge.finish(%(seq)s, %(run)s, 'failed', null, '{\"type\": \"E\"}')", "running"),
    "fail": Call('bridge.fail(%(seq)s, %(run)s, \'{"type": "E"}\')', RUN),
    "fail, final": Call('bridge.fail(%(seq)s, %(run)s, \'{"type": "E"}\', true)', f"running replaced {PART}"),
    "retry_run": Call(f"bridge.retry_run(%(seq)s, %(run)s, {CONTENT}, null, null)", RUN),
    "mark_replaced": Call("bridge.mark_replaced(%(seq)s, %(run)s, %(token)s)", "running replaced"),
    "step_aside": Call("bridge.step_aside(%(seq)s, %(run)s, %(token)s)", "replaced"),
    "end_delivery": Call("bridge.end_delivery(%(seq)s, %(token)s, %(worker)s, 'failed', '{\"type\": \"E\"}', false)", f"published {RUN}"),
    "end_delivery, expired": Call("bridge.end_delivery(%(seq)s, %(token)s, %(worker)s, 'expired', null)", "published claimed"),
    "end_delivery of the second": Call(
        "bridge.end_delivery(%(second_seq)s, %(second_token)s, %(worker)s, 'failed', '{\"type\": \"E\"}', false)", HELD
    ),
    "lose": Call("bridge.lose(%(seq)s, %(token)s, 'dead')", f"published {RUN}"),
    "release": Call("bridge.release(array[%(token)s, %(second_token)s]::uuid[])", f"{FLYING} running several-published"),
    "stop_worker": Call("bridge.stop_worker(%(worker)s)", f"published {RUN} several-published several-stopping", skips=True),
    "hold_run": Call("bridge.hold_run(%(seq)s, %(run)s)", "running stopping several-running"),
    "complete_run": Call("bridge.complete_run(%(seq)s, %(run)s, '1')", "running orphaned doomed replaced stopping"),
    "complete": Call("bridge.complete(id => %(job)s)", f"{WAITING} running"),
    "was_completed": Call("bridge.was_completed(%(seq)s, %(token)s)", "running"),
    "fate_of_run": Call("bridge.fate_of_run(%(seq)s, %(run)s)", "running succeeded", skips=True, passes=True),
    "note": Call('bridge.note(%(seq)s, %(run)s, \'{"fraction": 0.5}\', \'[[0, "info", "half"]]\')', "running stopping"),
    "progress": Call("bridge.progress(%(job)s, 0.5)", "running published"),
    "log": Call("bridge.log(%(job)s, 'a line')", "running"),
    "save_checkpoint": Call("bridge.save_checkpoint(%(job)s, '[1]', %(run)s)", "running"),
    "keep_untold": Call("bridge.keep_untold(%(seq)s, %(run)s, '[]')", "running"),
    "told": Call("bridge.told(%(job)s)", "running succeeded"),
    # results
    "store_result": Call("bridge.store_result(%(job)s, 'x', 'STARTED')", "running succeeded"),
    "forget": Call("bridge.forget(%(job)s)", "succeeded failed running"),
    "wait_for": Call("bridge.wait_for(array[%(job)s, %(child)s])", "running succeeded"),
    "forget_waiter": Call("bridge.forget_waiter(array[%(child)s, %(job)s])", "running"),
    # people
    "cancel": Call("bridge.cancel(%(job)s)", f"{EVERYWHERE} {PART} several-running"),
    "cancel, softly": Call("bridge.cancel(%(job)s, terminate => false)", "running published replaced"),
    "cancel the child": Call("bridge.cancel(%(child)s)", "running failed"),
    "cancel_jobs": Call(
        "bridge.cancel_jobs(jsonb_build_object('ids', array[%(child)s, %(job)s, %(second)s]))",
        "ready published running failed several several-published several-running",
    ),
    "cancel_jobs, queue": Call(
        "bridge.cancel_jobs(jsonb_build_object('queue', %(queue)s::text))", "ready published running failed several"
    ),
    "cancel_batch": Call("bridge.cancel_batch(%(batch)s)", "ready published running failed several"),
    "seal_batch": Call("bridge.seal_batch(%(batch)s)", "running failed"),
    "revoke": Call("bridge.revoke(array[%(job)s, %(absent)s, %(second)s])", f"{WAITING} running replaced several several-running"),
    "revoke_stamped": Call("bridge.revoke_stamped(jsonb_build_object('stamp', %(name)s::text))", "ready running"),
    "heed_revoke": Call("bridge.heed_revoke(%(job)s)", "published replaced cancelled"),
    "purge": Call("(bridge.purge(%(queue)s)).cancelled", f"{WAITING} running several several-published several-running"),
    "retry": Call("bridge.retry(%(job)s)", f"scheduled due running orphaned doomed {ENDED}"),
    "redrive": Call("bridge.redrive(%(job)s)", "failed running"),
    "redrive the second": Call("bridge.redrive(%(second)s)", "failed running"),
    "redrive_jobs": Call("bridge.redrive_jobs(jsonb_build_object('task', %(task)s::text))", "failed"),
    "retry_failed": Call("bridge.retry_failed(task => %(task)s)", "failed"),
    "discard": Call("bridge.discard(%(job)s)", "failed"),
    "discard_jobs": Call("bridge.discard_jobs(jsonb_build_object('task', %(task)s::text))", "failed"),
    "settle_unreported, ran": Call("bridge.settle_unreported(true, queue => %(queue)s)", "taken", skips=True, passes=True),
    "settle_unreported": Call("bridge.settle_unreported(false, queue => %(queue)s)", "taken", skips=True, passes=True),
    "set_priority": Call("bridge.set_priority(%(job)s, 9)", f"{WAITING} running"),
    "set_priority_jobs": Call(
        "bridge.set_priority_jobs(jsonb_build_object('ids', array[%(job)s, %(child)s, %(second)s]), 5)", "ready published several"
    ),
    "set_priority_jobs, queue": Call("bridge.set_priority_jobs(jsonb_build_object('queue', %(queue)s::text), 5)", "ready published"),
    "move": Call("bridge.move(%(job)s, %(elsewhere)s)", WAITING),
    "move_jobs": Call("bridge.move_jobs(jsonb_build_object('ids', array[%(job)s]), %(elsewhere)s)", "ready published"),
    "reschedule": Call("bridge.reschedule(%(job)s, delay => '1 hour')", WAITING),
    "reschedule_jobs": Call("bridge.reschedule_jobs(jsonb_build_object('ids', array[%(job)s]), delay => '1 hour')", "scheduled published"),
    "add_dependency": Call("bridge.add_dependency(%(job)s, %(parent)s)", "blocked scheduled ready running"),
    "pause": Call("bridge.pause(%(queue)s)", "ready published"),
    "pause, hard": Call("bridge.pause(%(queue)s, hard => true)", f"ready {FLYING} running several-published"),
    "resume": Call("bridge.resume(%(queue)s)", "ready published"),
    "set_window": Call("bridge.set_window(%(queue)s, 5)", "ready"),
    "set_limit": Call("bridge.set_limit(%(limit)s, queue => %(queue)s, concurrency => 1)", "rated ready limited published running"),
    "set_limit, rate": Call(
        "bridge.set_limit(%(limit)s, queue => %(queue)s, rate => 2, per => '1 hour', burst => 2)", "ready limited rated published"
    ),
    "set_limit, share": Call(
        "bridge.set_limit(%(limit)s, queue => %(queue)s, key => 'kwargs.tenant', concurrency => 1, fair => true)", "ready shared published"
    ),
    "remove_limit": Call("bridge.remove_limit(%(limit)s)", "limited ready rated shared running"),
    "reset_breaker": Call("bridge.reset_breaker(%(queue)s)", "guarded"),
    "remove_breaker": Call("bridge.remove_breaker(%(queue)s)", "guarded"),
    # schedules: the job is of a run of one that is due again
    "schedule": Call("bridge.schedule(%(schedule)s, '@daily', 'b.task')", "planned"),
    "unschedule": Call("bridge.unschedule(%(schedule)s)", "planned"),
    "run_schedule": Call("bridge.run_schedule(%(schedule)s)", "planned"),
    "pause_schedule": Call("bridge.pause_schedule(%(schedule)s)", "planned"),
    "resume_schedule": Call("bridge.resume_schedule(%(schedule)s)", "planned"),
    # chords: the job is the last part of one
    "begin_chord": Call("bridge.begin_chord(%(chord)s, '{}', '[]', %(elsewhere)s, null)", "part"),
    "size_chord": Call("bridge.size_chord(%(chord)s, 1)", "part"),
    "grow_chord": Call("bridge.grow_chord(%(chord)s)", "part"),
    "end_part": Call("bridge.end_part(%(chord)s, %(job)s, 0)", "part"),
    "take_chord": Call("(select count(*) from bridge.take_chord(%(chord)s))", "part", skips=True, passes=True),
    # time
    "tick": Call("bridge.tick('race') is null", f"{EVERYWHERE} {PART} several {SLICE}", skips=True, passes=True),
    "sweep": Call("bridge.sweep() is null", f"{FLYING} running orphaned doomed replaced failed {SLICE}", skips=True, passes=True),
}


def functions_of(call: Call) -> set[str]:
    """The names of the functions that a call names."""
    return set(re.findall(r"bridge\.([a-z_]+)\(", call.sql))


# Functions that may write and meet nobody over a job. Each kind of reason once.
OF_ITSELF = "one row of a table of settings, by its name: the second waits for the first and says the last word"
READS = "it reads, and is volatile for the clock or for locks that it only looks at"
ALONE = {
    **dict.fromkeys(
        ["allow_task", "disallow_task", "set_breaker", "set_retention", "remove_retention", "set_retry", "remove_retry", "set_webhook",
         "set_notifier", "set_channel", "remove_callback", "set_alert", "remove_alert", "set_archive", "set_bundle"], OF_ITSELF),
    **dict.fromkeys(["secret", "wait", "calls_to_stop", "watch_alerts"], READS),
    "note_refused": "it adds to the counts of reasons, in the order of their names",
    "create_batch": "it writes one new row, with a new id",
    "create_archive": "it makes a table, once, by a person",
    "try_callback": "it enqueues one job, without a key",
    "test_alert": "it enqueues one job, without a key",
    "save_group": "one row, by the id of a group",
    "delete_group": "one row, by the id of a group",
    "make_days": "behind an advisory lock of its own",
    "cleanup": "behind an advisory lock of its own, see tests/test_sql_cleanup.py",
    "cleanup_loop": "as cleanup", "cleanup_step": "as cleanup", "begin_cleanup": "as cleanup",
    "clean_results": "what is over, and nobody has in hand (skip locked)",
    "check_alerts": "behind an advisory lock that it tries",
    "collect_metrics": "behind an advisory lock that it tries",
    "acknowledge_alert": "one row, by the number of an alert",
    "resolve_alert": "one row, by the number of an alert",
    "raise_floors": "behind an advisory lock that it tries, see tests/test_sql_floors.py",
    "may_look": "one row, at most once in four seconds",
    "tick_if_late": "it is tick",
    "run_calls": "it is begin_call and perform_call, each in a transaction of its own",
    "begin_call": "it is claim and start", "perform_call": "it is finish or fail, see tests/test_functions_run.py",
    "stop_calls": "the rows of runs that nobody has in hand (skip locked)",
}  # fmt: skip
