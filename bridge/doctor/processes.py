"""Who is there: drainers, workers, workers that do not report, and their clocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.doctor.finding import Finding, error, ok, warning
from bridge.queries import health
from bridge.queries.silent import reporting, unreported

if TYPE_CHECKING:
    from bridge.broker.fleet import Consumer
    from bridge.doctor.subject import Subject
    from bridge.queries.health import Process

__all__ = ["bundles", "clocks", "drainers", "graces", "plugin", "refused", "workers"]

_JOIN = "bridge.install(app) in its application, or CELERY_LOADER=bridge.loader.Loader in its environment, then restart it"
_SETTLE = "say what became of them: select bridge.settle_unreported(ran => true), or false to run them again"


def drainers(subject: Subject) -> Finding:
    """Without one, nothing leaves Postgres."""
    known = health.drainers(subject.postgres, subject.limits.drainer_silent)
    alive = [one for one in known if one.alive]
    if not alive:
        return error("drainers", f"none alive{_last_seen(known)}: jobs stay queued", "start one: bridge drain", value=0.0)
    return ok("drainers", _shown(alive), value=float(len(alive)))


def workers(subject: Subject) -> Finding:
    """Without one that reports, nothing runs; without one for a queue, nothing of that queue."""
    known = health.workers(subject.postgres, subject.limits.worker_silent)
    alive = [one for one in known if one.alive]
    if not alive:
        return error(
            "workers", f"none alive{_last_seen(known)}: jobs stay published",
            f"start one: celery -A <app> worker; it reports when it has joined: {_JOIN}", value=0.0,
        )  # fmt: skip
    served = {queue for one in alive for queue in one.queues}
    unserved = sorted(health.published_queues(subject.postgres) - served)
    if unserved:
        return warning(
            "workers", f"{_shown(alive)}; none of them consumes {', '.join(unserved)}, where published jobs wait",
            f"celery -A <app> worker -Q {','.join(unserved)}", value=float(len(alive)),
        )  # fmt: skip
    return ok("workers", _shown(alive), value=float(len(alive)))


def plugin(subject: Subject) -> Finding:
    """A worker without our plugin runs jobs and says nothing: they stay published until somebody says what became of them."""
    if subject.broker is None:
        raise LookupError("no broker")
    consumers = subject.broker.consumers()
    known = reporting(subject.postgres, {one.plugin for one in consumers if one.plugin})
    silent = [one for one in consumers if one.plugin not in known]
    alive = [one for one in health.workers(subject.postgres, subject.limits.worker_silent) if one.alive]
    left = unreported(subject.postgres)
    taken = f"{left.jobs} jobs that {', '.join(left.taken_by)} took are unreported, the oldest is {left.oldest}" if left else ""
    if silent:
        return _silent(silent, health.queues_in_use(subject.postgres) | {queue for one in alive for queue in one.queues}, taken)
    if taken:
        return error("plugin", f"no worker is without the plugin now; {taken}", _SETTLE, value=0.0)
    if alive and not {one.name for one in alive} & {one.name for one in consumers}:
        return warning(
            "plugin", f"none of the {len(alive)} workers that report to Postgres answers on the broker",
            "give drainers the BRIDGE_BROKER_URL and BRIDGE_BROKER_OPTIONS of the workers' application; a busy solo pool does not answer",
        )  # fmt: skip
    return ok("plugin", "every worker that answers on the broker reports to Postgres", value=0.0)


def refused(subject: Subject) -> Finding:
    """A worker that runs signed messages alone drops others: somebody writes to the broker, or a drainer lacks the key."""
    found = health.refused_messages(subject.postgres)
    if not found:
        return ok("refused", "no message was refused in the last hour", value=0.0)
    words = "; ".join(f"{one.count} {one.reason}, the last {one.age:.0f} s ago by {one.worker}" for one in found)
    return warning(
        "refused", f"workers refused messages: {words}",
        "unsigned: a drainer without BRIDGE_SIGNING_KEY, or calls that are no rows; forged: another key, or somebody writes to the broker",
        value=float(sum(one.count for one in found)),
    )  # fmt: skip


def bundles(subject: Subject) -> Finding:
    """A task that asks for bundles and has what works by whole messages gets one message a job."""
    found = health.unbundled(subject.postgres)
    if not found:
        return ok("bundles", "no task asks for bundles in vain", value=0.0)
    words = ", ".join(f"{task} has {option}" for task, option in found)
    return warning(
        "bundles", f"tasks with bridge_bundle travel alone: {words}",
        "take that option away (soft_time_limit works for each job of a bundle; a rate is bridge.set_limit's), or bridge_bundle",
        value=float(len(found)),
    )  # fmt: skip


def _silent(silent: list[Consumer], ours: set[str], taken: str) -> Finding:
    """Workers without our plugin: an error on queues of ours, elsewhere worth a look."""
    shared = {one.queue for one in silent} & ours
    names = sorted({one.name for one in silent if not shared or one.queue in shared})
    found = f"without the plugin: {', '.join(names)} on {', '.join(sorted(shared or {one.queue for one in silent}))}"
    if not shared and not taken:
        return warning("plugin", f"{found}, where no job of ours is", f"when it is to run jobs: {_JOIN}", value=float(len(names)))
    words = f"{found}: what it takes is never reported" + (f"; {taken}" if taken else "")
    return error("plugin", words, f"{_JOIN}; then {_SETTLE}" if taken else _JOIN, value=float(len(names)))


def clocks(subject: Subject) -> Finding:
    """Everything in SQL goes by the database's clock; an ETA or expiry computed elsewhere goes by that machine's."""
    here, slack = _skew_here(subject)
    skews = {"this machine": here if abs(here) > slack else 0.0}
    running = [
        *health.drainers(subject.postgres, subject.limits.drainer_silent), *health.workers(subject.postgres, subject.limits.worker_silent)
    ]  # fmt: skip
    skews |= {one.name: one.skew for one in running if one.alive}
    name = max(skews, key=lambda one: abs(skews[one]))
    if abs(skews[name]) > subject.limits.clock_skew:
        wrong = [f"{one} {skew:+.1f} s" for one, skew in skews.items() if abs(skew) > subject.limits.clock_skew]
        return warning(
            "clocks", f"against the database's clock: {', '.join(wrong)}",
            "run a time service (chrony, systemd-timesyncd) there and on the database's machine", value=abs(skews[name]),
        )  # fmt: skip
    return ok("clocks", f"{len(skews)} within {abs(skews[name]):.2f} s of the database's", value=abs(skews[name]))


def graces(subject: Subject) -> Finding:
    """What is missing may be published again once every living worker has had two chances to say that it has it."""
    heartbeat, grace, lost = health.graces(subject.postgres)
    found = f"heartbeat is {heartbeat:g} s, republish_grace {grace:g} s, worker_lost {lost:g} s"
    wrong = ["republish_grace should be two heartbeats or more"] if grace < 2 * heartbeat else []
    wrong += ["worker_lost should be more than republish_grace"] if lost <= grace else []
    if wrong:
        return warning(
            "graces", f"{found}: {', and '.join(wrong)}, or what a worker has in hand may be published again",
            "update bridge.setting set value = '…' where name = '…'",
        )  # fmt: skip
    return ok("graces", found)


def _skew_here(subject: Subject) -> tuple[float, float]:
    """Seconds that this machine is ahead, and how far that may be wrong: half of the question's way there and back."""
    before = subject.now()
    server = health.server(subject.postgres).clock
    after = subject.now()
    half = (after - before) / 2
    return (before + half - server).total_seconds(), half.total_seconds()


def _shown(alive: list[Process]) -> str:
    names = ", ".join(one.name for one in alive[:5])
    return f"{len(alive)} alive: {names}" + (f" and {len(alive) - 5} more" if len(alive) > 5 else "")  # noqa: PLR2004


def _last_seen(known: list[Process]) -> str:
    if not known:
        return ", and none ever was"
    last = min(known, key=lambda one: one.age)
    return f", the last one ({last.name}) {'stopped' if last.stopped else 'went silent'} {last.age:.0f} s ago"
