"""Where the bridge hooks into a stock worker: public signals and one consumer bootstep."""

from __future__ import annotations

import atexit
import logging
import uuid
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals
from celery.concurrency import get_implementation
from celery.exceptions import NotRegistered
from kombu.common import ignore_errors

from bridge import schema
from bridge import settings as environment
from bridge.application import Membership, membership
from bridge.errors import SchemaError, ServerError, SettingError
from bridge.message import BUNDLE_TASK
from bridge.results import chord, composed
from bridge.results.failure import error_of
from bridge.worker import notifiers, outcome, webhooks
from bridge.worker.acknowledgement import (
    close_half_connected,
    keep_rows_out_of_redis,
    outlive_impatience,
    outlive_refusals,
    stop_fetching,
    unwatch_before_close,
)
from bridge.worker.answers import name_the_plugin
from bridge.worker.bundle import request
from bridge.worker.bundle.trace import BundleTrace
from bridge.worker.commands import heed_commands
from bridge.worker.fence import fence
from bridge.worker.heartbeat import Heartbeat, forget_dropped
from bridge.worker.log_filter import LogFilter
from bridge.worker.log_handler import LogHandler
from bridge.worker.request import compose_requests
from bridge.worker.signed import accept_signed_alone
from bridge.worker.unreadable import fail_row, guard_consumer, guard_reading

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FenceStep", "LeaveStep", "register"]

log = logging.getLogger("bridge.worker")

_UID = "bridge"
_BROKER_HEARTBEAT = 20  # seconds; RabbitMQ and Celery both give a silent line up after two, and Celery looks three times in each
_SILENCE = 10.0  # seconds that a broker may let its answer be waited for; above the second that a pop of Redis may take
_LIMITS = {"redis": "socket_timeout", "py-amqp": "read_timeout"}  # what kombu calls that, by the client
_LAST_POP = 1.2  # seconds until Redis has given up a blocking pop that is not answered by then; Celery's is one second long


class FenceStep(bootsteps.StartStopStep):
    """Prepares a consumer: the tasks' requests and tracers whenever Celery makes them anew, its channel each time it has connected.

    Celery makes them when it connects, and when a remote command reloads the pool. The tracers are those of the threads and solo pools,
    which run tasks in the main process.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        joined = membership(parent.app)
        if joined is not None:
            joined.soft_limit = parent.controller.soft_time_limit
            parent.update_strategies = _preparing(parent, joined, parent.update_strategies)
            outlive_refusals(parent)
            unwatch_before_close(parent)
            close_half_connected(parent)
            outlive_impatience(parent)
            guard_consumer(parent)
            accept_signed_alone(parent, joined)  # outermost: a message that was changed on its way must not touch its row

    def start(self, parent: Any) -> None:
        """Called by the consumer each time it has connected."""
        if membership(parent.app) is not None:
            keep_rows_out_of_redis(parent.task_consumer.channel)
            guard_reading(parent.task_consumer.channel)
            forget_dropped()


def _preparing(consumer: Any, joined: Membership, theirs: Callable[[], None]) -> Callable[[], None]:
    def update_strategies() -> None:
        compose_requests(consumer.app)
        theirs()
        _carry_bundles(consumer.app, joined)
        fence(consumer.app, joined)

    return update_strategies


def _carry_bundles(app: Any, joined: Membership) -> None:
    """Put our own tracer in the place of that of the task that bundles are messages of."""
    task = app.tasks[BUNDLE_TASK]
    if not isinstance(task.__trace__, BundleTrace):
        task.__trace__ = BundleTrace(app, joined)


class LeaveStep(bootsteps.StartStopStep):
    """Begins the end of a worker that stops in any way but a crash."""

    def close(self, parent: Any) -> None:
        """Called before the worker waits for its running tasks."""
        heartbeat = getattr(parent, "bridge_heartbeat", None)
        joined = membership(parent.app)
        if joined is not None:
            joined.board.leave()
        if heartbeat is not None:
            ignore_errors(parent.consumer, stop_fetching, parent.consumer.task_consumer)
            heartbeat.leave()


def register(app: Any) -> None:
    """Hook into the workers of an application that has joined."""
    app.steps["consumer"].add(FenceStep)
    app.steps["worker"].add(LeaveStep)
    chord.register(app)
    composed.register(app)
    request.register(app)
    webhooks.register(app)
    notifiers.register(app)
    signals.after_setup_logger.connect(_on_logger, dispatch_uid=_UID, weak=False)
    signals.after_setup_task_logger.connect(_on_logger, dispatch_uid=_UID, weak=False)
    signals.worker_init.connect(_on_init, dispatch_uid=_UID, weak=False)
    signals.worker_before_create_process.connect(_on_replacing, dispatch_uid=_UID, weak=False)
    signals.worker_process_init.connect(_on_process_init, dispatch_uid=_UID, weak=False)
    signals.worker_ready.connect(_on_ready, dispatch_uid=_UID, weak=False)
    signals.task_unknown.connect(_on_refused_message, dispatch_uid=_UID, weak=False)
    signals.task_rejected.connect(_on_refused_message, dispatch_uid=_UID, weak=False)
    signals.worker_process_shutdown.connect(_on_process_shutdown, dispatch_uid=_UID, weak=False)
    signals.worker_shutdown.connect(_on_shutdown, dispatch_uid=_UID, weak=False)


def _on_logger(logger: Any = None, **_: Any) -> None:
    """Celery has prepared a logger: records get the job that they belong to, and go to its log where that is wanted."""
    _name_jobs(logger)
    level = environment.load().job_logs
    if level != "off" and not any(isinstance(handler, LogHandler) for handler in logger.handlers):
        logger.addHandler(LogHandler(level.upper()))


def _name_jobs(*loggers: logging.Logger) -> None:
    """Let what these loggers write have the ids of the run that it comes from; a handler that has our filter keeps that."""
    for handler in (handler for logger in loggers for handler in logger.handlers):
        if not any(isinstance(one, LogFilter) for one in handler.filters):
            handler.addFilter(LogFilter())


def _on_init(sender: Any = None, **_: Any) -> None:
    """Before the pool forks: check the pool and the schema, hear of a silent broker, and make the identity that children inherit."""
    joined = membership(sender.app)
    if joined is not None:
        joined.worker_id = uuid.uuid4()
        joined.board  # noqa: B018 - made here, so that children share it
        _check_pool(sender.pool_cls)
        _hear_of_silence(sender.app, sender.pool_cls)
        name_the_plugin()
        heed_commands()
        _check_schema(joined)


def _check_pool(named: Any) -> None:
    """Refuse a pool whose greenlets stand still while one of them waits for Postgres: psycopg knows of gevent, not of the others.

    Raises:
        SystemExit: eventlet, or another of that kind.
    """
    pool = get_implementation(named)
    kind = pool.__module__.rpartition(".")[2]
    if pool.is_green and kind != "gevent":
        raise SystemExit(
            f"error: pool {kind} cannot run jobs that are rows: a query to postgres would hold up all of its tasks; "
            "start the worker with --pool=gevent or --pool=threads"
        )


def _hear_of_silence(app: Any, named: Any) -> None:
    """Have the worker notice in time that its line to the broker has gone silent, where the application says nothing of that itself.

    It would wait for ever: for Redis in a question that it puts every few seconds, so that kombu's own check never got its turn; for
    RabbitMQ while it closes, with all courtesy, what heartbeats have found dead. And those take two minutes as Celery agrees on them.
    The solo pool keeps them: it sends none while a task runs, and RabbitMQ would end the connection under each task of 40 seconds.
    """
    limit, options = _LIMITS.get(app.connection_for_read().transport.driver_name), app.conf.broker_transport_options
    if limit is not None and limit not in options:
        app.conf.broker_transport_options = {**options, limit: _SILENCE}
    runs_tasks_itself = get_implementation(named).__module__.endswith(".solo")
    if not runs_tasks_itself and not app.conf.value_set_for("broker_heartbeat"):
        app.conf.broker_heartbeat = _BROKER_HEARTBEAT


def _check_schema(joined: Membership) -> None:
    """Refuse to start where every job would fail; Postgres being away is no reason, it may come back.

    Raises:
        SystemExit: the schema is missing or of another release, or a setting is wrong. Celery logs any other exception and goes on.
    """
    try:
        joined.settings.signing_keys()
        schema.check(joined.settings.require_database(), timeout=joined.settings.timeout)
    except (SchemaError, SettingError) as error:
        raise SystemExit(f"error: {error}") from error
    except ServerError as error:
        log.warning("postgres is away, jobs wait error=%s", error)


def _on_replacing(**_: Any) -> None:
    """A process of the pool is about to be made, often because one has died: what that one had left is written first."""
    from celery import current_app  # noqa: PLC0415 - the worker's own

    joined = membership(current_app._get_current_object())  # noqa: SLF001
    if joined is not None:
        outcome.orphans_ended(joined)


def _on_process_init(**_: Any) -> None:
    """In each pool child, after its tracers have been built."""
    from celery import current_app  # noqa: PLC0415 - the child's own

    app = current_app._get_current_object()  # noqa: SLF001
    joined = membership(app)
    if joined is not None:
        _name_jobs(logging.getLogger(), logging.getLogger("celery"), logging.getLogger("celery.task"))  # an application's own, too
        _carry_bundles(app, joined)
        fence(app, joined)


def _on_process_shutdown(**_: Any) -> None:
    """A pool child ends: no finish may be left on its way."""
    from celery import current_app  # noqa: PLC0415 - the child's own

    joined = membership(current_app._get_current_object())  # noqa: SLF001
    if joined is not None:
        joined.channels.settle()


def _on_ready(sender: Any = None, **_: Any) -> None:
    """The consumer is up: report from now on, until the process ends in whatever way."""
    joined = membership(sender.app)
    if joined is not None:
        worker = sender.controller
        sender.bridge_heartbeat = worker.bridge_heartbeat = Heartbeat(joined, sender)
        sender.bridge_heartbeat.start()
        _leave_before_waiting(worker)
        atexit.register(worker.bridge_heartbeat.stop)  # a cold shutdown sends no signal at its end


def _leave_before_waiting(worker: Any) -> None:
    """A soft shutdown (Celery 5.5 and newer) waits within the signal's handler, before anything of the worker closes."""
    theirs = getattr(worker, "wait_for_soft_shutdown", None)
    if theirs is None:
        return

    def wait_for_soft_shutdown() -> None:
        worker.bridge_heartbeat.leave(after=_LAST_POP)
        theirs()

    worker.wait_for_soft_shutdown = wait_for_soft_shutdown


def _on_refused_message(sender: Any = None, message: Any = None, exc: Any = None, name: str = "", **_: Any) -> None:
    """The worker does not know the task, or cannot read the message: the job fails with that reason, instead of being lost."""
    # The exception is Celery's own, for who catches it; the words are for who reads the row.
    error = error_of(NotRegistered(name) if name else exc, None)
    if name:
        error["message"] = f"task {name} is not registered in worker {sender.hostname}"
    fail_row(sender.app, message, error)


def _on_shutdown(sender: Any = None, **_: Any) -> None:
    """The pool has stopped: say good-bye."""
    joined = membership(sender.app)
    if joined is not None:
        joined.channels.settle()  # the threads and solo pools run tasks in this process
    heartbeat = getattr(sender, "bridge_heartbeat", None)
    if heartbeat is not None:
        heartbeat.stop()
