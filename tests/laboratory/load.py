"""The load: jobs of the kinds below, by the doors that each names, from one process: `python -m laboratory.load SEED RATE`.

Each call is told to the witness before it is made, and its outcome after. A call that fails may have been made all the same: then nobody
knows, and the checker lets both be. It draws from the seed, and ends at SIGTERM after the call that it is at.
"""

from __future__ import annotations

import logging
import random
import signal
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery import chain, chord, group

import bridge
from bridge.errors import BridgeError
from laboratory import tasks
from laboratory.client import UNKNOWN, Backlog, bridge_connection
from laboratory.ledger import Ledger, Wish

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SILENCE = 4.0  # seconds that Redis may be silent, which Celery's callers would hear for ever
PATIENCE = 100  # times that an operator asks: a queue that stayed paused would hold the whole load up
log = logging.getLogger("laboratory.load")

KINDS: dict[str, tuple[int, Callable[[Load], None]]] = {}  # by name: weight and what makes it


def kind(weight: int) -> Callable[[Callable[[Load], None]], Callable[[Load], None]]:
    """Register what makes jobs of a kind, and how often it is drawn beside the others."""

    def register(make: Callable[[Load], None]) -> Callable[[Load], None]:
        KINDS[make.__name__] = (weight, make)
        return make

    return register


@dataclass
class Load:
    """What makes jobs, one call after the other."""

    chance: random.Random
    ledger: Ledger
    next_lab: int
    made: deque[tuple[int, Any]] = field(default_factory=lambda: deque(maxlen=200))  # numbers and ids of jobs that may be operated on
    failing: deque[tuple[int, Any]] = field(default_factory=lambda: deque(maxlen=50))

    def lab(self) -> int:
        """A new number."""
        self.next_lab += 1
        return self.next_lab

    def short(self) -> float:
        """Seconds that a usual task takes."""
        return float(self.chance.choice((0.0, 0.0, 0.02, 0.1, 0.4)))

    def queue(self) -> str:
        return self.chance.choice(tasks.QUEUES)

    def call(self, wishes: Sequence[Wish], make: Callable[[], Any], outcome: Callable[[Any], str] = lambda _made: "committed") -> Any:
        """Tell, make, tell; what the call gave, None when nobody knows whether it was made."""
        self.ledger.ask(wishes)
        labs = [wish.lab for wish in wishes]
        try:
            made = make()
        except UNKNOWN as error:
            log.warning("unknown %s %s %s: %s", wishes[0].kind, labs, type(error).__name__, error)
            return None
        except BridgeError as error:
            log.warning("refused %s %s %s", wishes[0].kind, labs, error)
            self.ledger.tell(labs, "refused")
            return None
        self.ledger.tell(labs, outcome(made))
        return made

    def enqueue(self, task: str, wish: Wish, kwargs: dict[str, Any] | None = None, **options: Any) -> Any:
        """One job by bridge.enqueue."""
        content = {"lab": wish.lab, **(kwargs or {})}
        return self.call([wish], lambda: bridge.enqueue(task, [], content, **{"queue": self.queue(), **options}))

    def step(self) -> None:
        """One call of a kind that is drawn."""
        name = self.chance.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
        KINDS[name][1](self)


@kind(6)
def plain(load: Load) -> None:
    """A job by SQL, as triggers make it."""
    wish = Wish(load.lab(), "plain", "sql")
    query = "select bridge.enqueue('lab.work', kwargs => jsonb_build_object('lab', %s::bigint, 'seconds', %s::numeric), queue => %s)"

    def make() -> Any:
        with bridge_connection() as connection:
            row = connection.execute(query, (wish.lab, load.short(), load.queue())).fetchone()
            return row[0] if row else None

    if (made := load.call([wish], make)) is not None:
        load.made.append((wish.lab, made))


@kind(3)
def many(load: Load) -> None:
    """A page of jobs in one call."""
    wishes = [Wish(load.lab(), "many", "enqueue_many") for _ in range(load.chance.randint(5, 25))]
    rows = [{"task": "lab.work", "kwargs": {"lab": wish.lab, "seconds": load.short()}, "queue": load.queue()} for wish in wishes]
    load.call(wishes, lambda: bridge.enqueue_many(rows))


@kind(6)
def delay(load: Load) -> None:
    """A plain call of Celery's."""
    wish = Wish(load.lab(), "delay", "delay")
    load.call([wish], lambda: tasks.work.delay(lab=wish.lab, seconds=load.short()))


@kind(3)
def within(load: Load) -> None:
    """A plain call of Celery's in the caller's own transaction."""
    wish = Wish(load.lab(), "within", "delay")

    def make() -> None:
        with bridge_connection() as connection, connection.transaction(), bridge.using(connection):
            tasks.work.delay(lab=wish.lab, seconds=load.short())

    load.call([wish], make)


@kind(2)
def expiring(load: Load) -> None:
    """A job that is worth nothing when it has not begun in time."""
    wish = Wish(load.lab(), "expiring", "enqueue", expected=("succeeded", "expired"))
    until = datetime.now(UTC) + timedelta(seconds=load.chance.uniform(0.5, 5))
    load.enqueue("lab.work", wish, {"seconds": load.short()}, expires_at=until)


@kind(4)
def slow(load: Load) -> None:
    """A job that runs for seconds."""
    wish = Wish(load.lab(), "slow", "enqueue")
    made = load.enqueue("lab.work", wish, {"seconds": load.chance.uniform(0.5, 2.5)}, priority=load.chance.randint(0, 9))
    if made is not None:
        load.made.append((wish.lab, made))


@kind(2)
def fails(load: Load) -> None:
    """A job that fails until its attempts are used up."""
    attempts = load.chance.randint(1, 3)
    wish = Wish(load.lab(), "fails", "enqueue", expected=("failed",), attempts=attempts)
    if (made := load.enqueue("lab.fail", wish, max_attempts=attempts, backoff=load.chance.choice((0, 0.5)))) is not None:
        load.failing.append((wish.lab, made))


@kind(2)
def flaky(load: Load) -> None:
    """A job that succeeds at last."""
    wish = Wish(load.lab(), "flaky", "enqueue")
    load.enqueue("lab.flaky", wish, {"failures": load.chance.randint(1, 2)}, max_attempts=10, backoff=0.3)


@kind(2)
def again(load: Load) -> None:
    """A call that asks for further attempts by self.retry."""
    wish = Wish(load.lab(), "again", "delay")
    load.call([wish], lambda: tasks.again.delay(lab=wish.lab, retries=load.chance.randint(1, 2)))


@kind(2)
def later(load: Load) -> None:
    """A call that is due later."""
    wish = Wish(load.lab(), "later", "apply_async")
    seconds = load.chance.uniform(0.5, 6)
    load.call([wish], lambda: tasks.work.apply_async(kwargs={"lab": wish.lab}, countdown=seconds, queue=load.queue()))


@kind(2)
def unique(load: Load) -> None:
    """One of the jobs that share a few unique keys."""
    wish = Wish(load.lab(), "unique", "sql")
    key = f"key-{load.chance.randint(1, 4)}"
    query = "select bridge.enqueue('lab.work', kwargs => jsonb_build_object('lab', %s::bigint, 'seconds', 0.3), unique_key => %s)"

    def make() -> bool:
        with bridge_connection() as connection, connection.transaction():
            row = connection.execute(query, (wish.lab, key)).fetchone()
            # Another's id may name a job that has ended meanwhile: it is there all the same.
            whose = connection.execute("select kwargs->>'lab' from bridge.jobs where id = %s", row).fetchone()
            return whose == (str(wish.lab),)

    load.call([wish], make, lambda ours: "committed" if ours else "skipped")


@kind(3)
def limited(load: Load) -> None:
    """A job of which two run at once at most."""
    load.enqueue("lab.limited", Wish(load.lab(), "limited", "enqueue"), {"seconds": 0.1}, queue="celery")


@kind(2)
def rated(load: Load) -> None:
    """Jobs of which so many a second begin at most."""
    wishes = [Wish(load.lab(), "rated", "enqueue_many") for _ in range(load.chance.randint(1, 3))]
    load.call(wishes, lambda: bridge.enqueue_many([{"task": "lab.rated", "kwargs": {"lab": wish.lab}} for wish in wishes]))


@kind(3)
def serial(load: Load) -> None:
    """A job that runs alone among those of its key."""
    key = f"serial-{load.chance.randint(1, 3)}"
    load.enqueue("lab.work", Wish(load.lab(), key, "enqueue"), {"seconds": load.short()}, serial_key=key)


@kind(2)
def depends(load: Load) -> None:
    """Two parents and a child."""
    parents = [Wish(load.lab(), "parent", "enqueue_flow") for _ in range(2)]
    child = Wish(load.lab(), "child", "enqueue_flow", parents=tuple(one.lab for one in parents))
    jobs: dict[str, dict[str, Any]] = {
        f"p{one.lab}": {"task": "lab.work", "kwargs": {"lab": one.lab, "seconds": load.short()}} for one in parents
    }
    jobs["child"] = {"task": "lab.work", "kwargs": {"lab": child.lab}, "depends_on": list(jobs)}
    load.call([*parents, child], lambda: bridge.enqueue_flow(jobs))


@kind(2)
def chained(load: Load) -> None:
    """A chain of three."""
    labs = [load.lab() for _ in range(3)]
    wishes = [Wish(lab, "chain", "canvas", parents=tuple(labs[:number])) for number, lab in enumerate(labs)]
    load.call(wishes, lambda: chain(*(tasks.work.s(lab=lab, seconds=load.short()) for lab in labs)).apply_async())


@kind(1)
def grouped(load: Load) -> None:
    """A group of four."""
    wishes = [Wish(load.lab(), "group", "canvas") for _ in range(4)]
    load.call(wishes, lambda: group(tasks.work.s(lab=wish.lab, seconds=load.short()) for wish in wishes).apply_async())


@kind(2)
def chorded(load: Load) -> None:
    """Three parts and a body."""
    parts = [Wish(load.lab(), "part", "canvas") for _ in range(3)]
    body = Wish(load.lab(), "body", "canvas", parents=tuple(one.lab for one in parts))
    header = [tasks.work.s(lab=one.lab, seconds=load.short()) for one in parts]
    load.call([*parts, body], lambda: chord(header)(tasks.work.s(lab=body.lab)))


@kind(2)
def batched(load: Load) -> None:
    """Three jobs of a batch and its callback."""
    members = [Wish(load.lab(), "member", "batch") for _ in range(3)]
    callback = Wish(load.lab(), "callback", "batch", parents=tuple(one.lab for one in members))

    def make() -> None:
        with bridge_connection() as connection, connection.transaction():
            batch = bridge.create_batch(callback="lab.work", kwargs={"lab": callback.lab}, connection=connection)
            for one in members:
                bridge.enqueue("lab.work", [], {"lab": one.lab, "seconds": load.short()}, batch=batch, connection=connection)
            bridge.seal_batch(batch, connection=connection)

    load.call([*members, callback], make)


@kind(4)
def transfer(load: Load) -> None:
    """A job whose effect and end are one transaction. Its task's own connection may hang for ever, so it has a time limit."""
    wish = Wish(load.lab(), "transfer", "enqueue")
    load.enqueue("lab.transfer", wish, {"seconds": load.short()}, max_attempts=20, backoff=0.2, timeout=15)


@kind(1)
def rolled_back(load: Load) -> None:
    """A job whose transaction is rolled back: it was never there."""
    wish = Wish(load.lab(), "rolled_back", "enqueue", expected=())

    def make() -> None:
        with bridge_connection() as connection, connection.transaction(force_rollback=True):
            bridge.enqueue("lab.work", [], {"lab": wish.lab}, connection=connection)

    load.call([wish], make, lambda _made: "refused")


@kind(2)
def cancelled(load: Load) -> None:
    """A job that somebody cancels, before it is due or while it may run."""
    wish = Wish(load.lab(), "cancelled", "enqueue", expected=("cancelled", "succeeded"))
    made = load.enqueue("lab.work", wish, {"seconds": 1.0}, delay=load.chance.choice((None, None, 1.0)))
    if made is not None:
        operate(load, wish.lab, "cancel", lambda: str(bridge.cancel(made)))


@kind(2)
def revoked(load: Load) -> None:
    """The same by Celery's call, which goes to Postgres and then to the broker: only when it has come back, somebody was told."""
    wish = Wish(load.lab(), "revoked", "enqueue", expected=("cancelled", "succeeded"))
    made = load.enqueue("lab.work", wish, {"seconds": 1.0}, delay=load.chance.choice((None, None, 1.0)))

    def revoke() -> str:
        tasks.app.control.revoke(str(made))
        return str(bridge.get(made).status)

    if made is not None:
        operate(load, wish.lab, "cancel", revoke)


@kind(1)
def paused(load: Load) -> None:
    """An operator pauses a queue for a moment and resumes it, however often he must ask; when he dies, the runner does at the end."""
    queue = load.queue()
    with suppress(BridgeError, *UNKNOWN):
        bridge.pause(queue)
    for _ in range(PATIENCE):
        time.sleep(0.3)
        with suppress(*UNKNOWN):
            bridge.resume(queue)
            return


@kind(1)
def hastened(load: Load) -> None:
    """An operator changes how urgent a job is: it is taken back where it was published, and its message starts nothing."""
    if load.made:
        lab, made = load.chance.choice(load.made)
        operate(load, lab, "priority", lambda: str(bridge.set_priority(made, load.chance.randint(0, 9))))


@kind(1)
def retried(load: Load) -> None:
    """An operator runs an old failure once more."""
    if not load.failing:
        return
    lab, made = load.failing.popleft()
    operate(load, lab, "retry", lambda: str(bridge.retry(made)))


def operate(load: Load, lab: int, action: str, do: Callable[[], str]) -> None:
    """An operator does something to a job."""
    number = load.ledger.operate(lab, action)
    try:
        answer = do()
    except UNKNOWN:
        return
    except BridgeError as error:
        answer = f"refused: {error}"
    load.ledger.answer(number, answer)


def main(seed: int, rate: float) -> None:
    """Make calls at this rate until SIGTERM."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ledger = Ledger.here()
    load = Load(random.Random(seed), ledger, ledger.one("select coalesce(max(lab), 0) from asked"))  # noqa: S311
    due, looks = time.monotonic(), Backlog()
    tasks.app.conf.broker_transport_options = {"socket_timeout": SILENCE}
    while not ended.is_set():
        if looks.is_long():
            ended.wait(0.5)
            continue
        load.step()
        # Calls that an outage held up are not made up for.
        due = max(due + 1 / rate, time.monotonic() - 1.0)
        ended.wait(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
