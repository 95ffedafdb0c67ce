"""Faults of pg_cron: its runs ended, its entries switched off, a second entry that ticks beside the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laboratory.faults import Cost, Fault, MissedError, fault
from laboratory.world import Needs

if TYPE_CHECKING:
    from laboratory.world import World

SECOND = "bridge-tick-second"


class OfCron(Fault):
    """Something in the tables of pg_cron changes, and is put back."""

    needs = Needs(cron=True)
    hold = (61.0, 75.0)  # before 1.5 an entry is looked at once a minute, and its run lasts until the next
    do = undo = ""

    def strike(self, world: World) -> Cost:
        """Change it."""
        with world.sql() as connection:
            if not connection.execute(self.do.encode()).rowcount:
                raise MissedError("pg_cron has nothing of the kind")
        return Cost()

    def mend(self, world: World) -> None:
        """Put it back."""
        if self.undo:
            with world.sql() as connection:
                connection.execute(self.undo.encode())


END_RUNS = "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'pg_cron' and datname = current_database()"


@fault
class CronStopped(OfCron):
    """The entry that ticks is switched off and its run ended, and the drainers take over."""

    name = "cron-off"
    do = f"select cron.alter_job(jobid, active => false) from cron.job where jobname like 'bridge-tick-%'; {END_RUNS}"
    undo = "select cron.alter_job(jobid, active => true) from cron.job where jobname like 'bridge-tick-%'"


@fault
class CronRunsEnded(OfCron):
    """The session of pg_cron that ticks is ended in the middle of its loop."""

    name = "cron-run-kill"
    hold = (0.0, 1.0)
    do = END_RUNS


@fault
class CronDoubled(OfCron):
    """A second entry ticks beside the first, and beside the drainers."""

    name = "cron-double"
    do = f"select cron.schedule('{SECOND}', schedule, command) from cron.job where jobname like 'bridge-tick-%' and jobname <> '{SECOND}'"
    undo = f"select cron.unschedule(jobid) from cron.job where jobname = '{SECOND}'"
