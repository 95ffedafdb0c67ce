"""Strange words for every command, found by walking the commands: it ends with 0, 1 or 2, says why, and shows no traceback."""

from __future__ import annotations

import random
import traceback
from typing import TYPE_CHECKING

import click
import pytest
from fix_client import command
from fix_effort import EFFORT
from fix_fuzz import World, changed, contents
from fix_sql import Session
from invariants import assert_sound

from bridge.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

APART = {"up", "demo", "bench", "web", "drain", "top"}  # these stay, and other tests are about them
STAYS = {"watch", "wait", "follow", "interval", "patience", "help"}  # options that make a command stay, or another
PATIENT = {"wait", "drain"}  # without a timeout, commands of this name wait for ever
WORDS = [
    "", "a b", "\n", "\x1b[31m", "é→😀", "\udcff", "-1", "0", "1", "5", "1e9", "99999999999999999999", "nan", "inf", "x" * 300, "{}",
    "[]", "{", "null", "[1]", '{"a": NaN}', '["\\u0000"]', '["\\ud800"]', "[1e999]", "*", "celery", "q0", "nightly", "hook", "a.task",
    "--", "-x", "--json", "/nonexistent", "/dev/null", "/", "1h", "-1s", "1000000000d", "2031-01-01", "infinity", "UTC", "0 3 * * *",
    "99 * * * *", "http://x", "failed", "running", "SIGTERM", "%s", "../..", "0x10", "\uff11\uff12", "1_000", "true",
]  # fmt: skip


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands that do something, with the words that lead to each."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            yield from commands(found, (*path, name))
        elif found is not None and (path or name not in APART):
            yield (*path, name), found


def words_for(found: click.Command, world: World, chance: random.Random) -> list[str]:
    """Arguments, and some options, of which most are strange."""
    words: list[str] = []
    for each in found.params:
        known = list(map(str, each.type.choices)) if isinstance(each.type, click.Choice) and chance.random() < 0.7 else WORDS
        word = str(chance.choice(world.ids)) if chance.random() < 0.2 else chance.choice(known)
        if isinstance(each, click.Argument):
            words += [word] * (1 if each.nargs == 1 else chance.randrange(3))
        elif isinstance(each, click.Option) and each.name not in STAYS and chance.random() < 0.3:
            words += [chance.choice(each.opts)] if each.is_flag else [chance.choice(each.opts), word]
    return words


@pytest.mark.usefixtures("ours")
def test_strange_words_are_taken_or_refused_without_a_traceback(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_BROKER_URL", "redis://127.0.0.1:1/0")
    session = Session(dsn)
    world = World(session)
    seed = 6 if EFFORT == 1 else random.randrange(1 << 30)  # noqa: S311
    chance = random.Random(seed)  # noqa: S311
    wrong: dict[tuple[object, ...], list[str]] = {}
    assert_sound(dsn)
    before = contents(session)
    for path, found in commands(main):
        for _ in range(EFFORT):
            words = words_for(found, world, chance) + (["--timeout", "0.1s"] if path[-1] in PATIENT else [])
            result = command(*path, *words)
            if not isinstance(result.exception, SystemExit | None):
                place = str(traceback.extract_tb(result.exception.__traceback__)[-1])
                wrong.setdefault((*path, repr(result.exception), place), words)
            elif result.exit_code not in {0, 1, 2} or "Traceback" in result.output:
                wrong.setdefault((*path, result.exit_code, result.output[-200:]), words)
            elif result.exit_code and not result.output.strip():
                wrong.setdefault((*path, "says nothing", result.exit_code), words)
            before, last = contents(session), before
            # A drain that has not come to its end leaves its queues paused, and says so.
            if result.exit_code and changed(last, before) and "they stay paused" not in result.output:
                wrong.setdefault((*path, "writes", *changed(last, before), result.output[-200:]), words)
    assert wrong == {}, f"with seed {seed}"
    assert_sound(dsn)
    session.connection.close()


def refused(found: click.Command, name: str) -> Iterator[list[str]]:
    """Words that a command's own parser refuses: it starts nothing."""
    yield from (["--no-such-option"], ["-Y"], ["--\x1b[31m"], ["--help=x"])
    taking = [each for each in found.params if isinstance(each, click.Option) and not each.is_flag]
    for words in ([each.opts[0], *given] for each in taking for given in [(), *((word,) for word in WORDS)]):
        try:
            found.make_context(name, [*words], resilient_parsing=False)
        except click.UsageError:
            yield words


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("name", sorted(APART))
def test_commands_that_stay_refuse_words_before_they_begin(db: Session, name: str) -> None:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    assert not isinstance(found, click.Group), "nothing else hides there"
    before = contents(db)
    for words in refused(found, name):
        result = command(name, *words)
        assert (result.exit_code, result.stdout) == (2, ""), words
        assert "Error: " in result.stderr, words
        assert not any(word in result.stderr for word in ("Traceback", "\x1b")), words
    assert changed(before, contents(db)) == []


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(("words", "said"), [
    (["cleanup", "archive", "set", "a b"], "error: invalid name syntax: give schema.table, a part that is no plain name in double quotes"),
])  # fmt: skip
def test_what_was_found_is_said_well(words: list[str], said: str) -> None:
    result = command(*words)
    assert (result.exit_code, result.stderr) == (1, f"{said}\n")
