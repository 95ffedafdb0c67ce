"""The order of locks, as ARCHITECTURE says it, seen in the running system: what each function has whenever it could wait for somebody."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fix_effort import EFFORT
from fix_order import advisory_locks, items_after
from invariants import assert_sound
from races_locks import FIRST, LIMITS, MADE, ORDER, OWN, PASSED, PLACES, Edge, Prober
from races_table import ALONE, CALLS, functions_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_sql import Session
    from races_table import Call

# What others may call, and may write.
CATALOG = """
    select distinct p.proname from pg_proc p join bridge.listed_rights() l on l.object = 'routine ' || p.oid::regprocedure
    where p.pronamespace = 'bridge'::regnamespace and p.provolatile = 'v'"""


@pytest.fixture
def prober(dsn: str) -> Iterator[Prober]:
    prober = Prober(dsn)
    yield prober
    prober.close()
    assert_sound(dsn)


def not_in_both(db: Session) -> set[str]:
    """What the catalog has and the table of races lacks, and the other way round."""
    known = {name for call in CALLS.values() for name in functions_of(call)} | set(ALONE)
    return {name for (name,) in db.rows(CATALOG)} ^ known


def test_every_function_that_may_write_stands_in_the_table_of_races_or_says_why_not(db: Session) -> None:
    assert not_in_both(db) == set()


def test_a_function_that_is_new_or_gone_is_missed_in_the_table_of_races(db: Session) -> None:
    db.do("create function bridge.planted() returns void language sql begin atomic delete from bridge.waiter; end")
    db.do("create function bridge.planted_reader() returns bigint stable language sql begin atomic select count(*) from bridge.waiter; end")
    lines = "function planted worker\nfunction planted_reader worker\n"
    granted = db.one("select pg_get_functiondef('bridge.granted()'::regprocedure)")
    db.do(granted.replace("function  acknowledge_alert", f"{lines}function  acknowledge_alert"))
    db.do("alter function bridge.told(uuid) rename to told_no_more")
    assert not_in_both(db) == {"planted", "told"}


def test_the_order_that_is_looked_for_is_the_one_of_the_document() -> None:
    *turns, own, limits = items_after("Whoever waits for a row has none that comes later in this order:")
    tables = {kind: [table] for table, kind in MADE.items()} | {"place": PLACES}
    assert [name for names in turns for name in names] == [name for kind in ORDER[:-3] for name in tables.get(kind, [kind])]
    assert set(ORDER) > FIRST
    assert sorted(own) == sorted(OWN)
    assert limits == LIMITS == ORDER[-2:]


def test_every_table_has_its_turn_in_the_document_or_a_reason_why_it_has_none(db: Session) -> None:
    turns = items_after("Whoever waits for a row has none that comes later in this order:")
    without = items_after("All other tables have no turn, because nobody who has a row of the list waits for one of theirs:")
    reasons = [name for names in without for name in names if name != "skip locked"]
    assert sorted(without[0]) == sorted(["skip locked", *PASSED])
    there = "select relname from pg_class where relnamespace = 'bridge'::regnamespace and relkind in ('r', 'p') and not relispartition"
    assert sorted([*reasons, *{name for names in turns for name in names}]) == sorted(name for (name,) in db.rows(there))


def test_every_advisory_lock_of_the_sql_is_named_in_the_document_as_waited_for_or_tried() -> None:
    items = items_after("Advisory locks, by the text that their number is made of:")
    assert [{name.partition(" ")[0] for name in names} for names in items] == list(advisory_locks())


def chosen_stages(call: Call) -> list[str]:
    """With more effort all; else the first, where orders differ, and, of what waits for nobody, where it finds most to do."""
    stages = call.stages.split()
    telling = ("overdue", "orphaned", "guarded", "held", "shared") if call.passes else ("several",)
    return stages if EFFORT > 1 else [*stages[:1], *(s for s in stages[1:] if s.startswith(telling))]


def is_against_the_order(edge: Edge) -> bool:
    """Whether two who hold and want such rows could wait for each other in a circle.

    Of ended jobs that are run again by one call, each comes with its id: the next one's id after the last one's row.
    """
    if (edge.had.kind, edge.wanted.kind) == ("finished", "job to be made"):
        return False
    return edge.had.turn > edge.wanted.turn


def test_who_waits_for_a_row_has_none_that_comes_later_in_the_order(prober: Prober) -> None:
    found = []
    for name, call in CALLS.items():
        for stage in chosen_stages(call):
            if call.passes:
                prober.maker.clear()
            for edge in prober.edges(call, prober.maker.make(stage)):
                if call.passes or edge.wanted.kind in PASSED:
                    found.append(f"{name} of a job that is {stage} waits for {edge.wanted}")
                elif is_against_the_order(edge):
                    found.append(f"{name} of a job that is {stage} has {edge.had} while it waits for {edge.wanted}")
    assert found == []
