"""What the processes of a pool tell their main process by memory that they share."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import billiard
from billiard.process import current_process

from bridge.queries.runs import Finish
from bridge.worker.board import Board

if TYPE_CHECKING:
    from collections.abc import Callable

WHOLE = Finish(7, UUID(int=1), "token-7", UUID(int=2), "succeeded", '"é"', None, '{"children": []}')
BARE = Finish(3, UUID(int=3), "token-3", UUID(int=4), "succeeded")
HUGE = Finish(5, UUID(int=5), "token-5", UUID(int=6), "succeeded", "x" * (300 << 10))


def in_a_child(act: Callable[[], bool]) -> int:
    """Run this in a process of a pool, which must find it true; its pid, when it has ended."""

    def run() -> None:
        current_process().index = 0
        assert act()

    process = billiard.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == 0
    return int(process.pid)


def test_outcomes_of_a_dead_process_are_read_as_it_had_them() -> None:
    board = Board()
    pid = in_a_child(lambda: board.hold(WHOLE) and board.hold(BARE))
    assert board.held(pid) == [BARE, WHOLE]
    assert board.held(pid + 1) == []


def test_an_outcome_without_room_is_named_and_must_be_sent_at_once() -> None:
    board = Board()
    pid = in_a_child(lambda: not board.hold(HUGE) and board.hold(WHOLE))
    assert board.held(pid) == [WHOLE], "of the other the name alone is kept"
    assert board.unanswered() == {"token-7"}, "which nobody can write"


def test_answered_outcomes_are_forgotten() -> None:
    board = Board()

    def act() -> bool:
        board.hold(WHOLE)
        board.hold(BARE)
        board.answered([BARE])
        board.begin(9)
        return board.unanswered() == {"token-3"}

    pid = in_a_child(act)
    assert board.held(pid) == [BARE]
    assert board.at(pid) == 9
    assert board.unanswered() == {"token-3"}, "the main process is still to write it"
    board.forget(pid)
    assert board.unanswered() == set()


def test_what_a_process_has_left_outlives_its_successor_until_it_is_written() -> None:
    board = Board()
    dead = in_a_child(lambda: board.hold(WHOLE))
    successor = in_a_child(lambda: board.hold(BARE))
    assert set(board.orphans()) == {dead, successor}
    assert (board.held(dead), board.held(successor)) == ([WHOLE], [BARE])
    board.forget(dead)
    board.forget(successor)
    assert board.orphans() == []


def test_the_main_process_writes_nothing() -> None:
    board = Board()
    assert board.hold(WHOLE)
    assert board.unanswered() == set()
