"""Many jobs by few statements: ``bridge.enqueue_page`` takes a page of them, an array a column."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from psycopg.generators import send

from bridge.asked import CLASSES, classes, plain
from bridge.errors import InvalidArgumentError
from bridge.ids import Ids, new_ids
from bridge.queries.arrays import Integers, Texts, Uuids, adapt
from bridge.queries.connection import is_pooled, plainly, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from psycopg import Cursor

    from bridge.queries.arrays import Array
    from bridge.queries.connection import Connection

__all__ = ["enqueue_many", "with_parents"]

_ROWS = 2000  # of a page: more are no quicker
_FIRST = 250  # of the first page, for which Postgres waits; each further one has twice as many, up to _ROWS
_BYTES = 4 << 20  # of a page's arguments
_QUERY = b"select bridge.enqueue_page(%s::text[], %s::uuid[], %s::integer[], %s::text[], %s::text[], %s::text[], %s::integer)"
_OWN = frozenset(("args", "kwargs", "unique_key"))  # what is a row's own; the rest is its template's
_EMPTY: tuple[Any, ...] = ((), [], {}, None)
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_ZERO = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(slots=True)
class Page:
    """Jobs on their way.

    Attributes:
        first: number of its first job in the call.
        templates: what is asked of them beyond their own, each once, with its number.
        rows: most jobs that it takes.
        size: characters of their arguments.
    """

    first: int
    rows: int
    templates: dict[str, int] = field(default_factory=dict)
    which: list[int] = field(default_factory=list)
    args: list[str] = field(default_factory=list)
    kwargs: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    size: int = 0

    @property
    def is_full(self) -> bool:
        """Whether the next job begins another page."""
        return len(self.args) >= self.rows or self.size >= _BYTES

    @property
    def has_keys(self) -> bool:
        """Whether some of the jobs have a unique key."""
        return any(key is not None for key in self.keys)

    def parameters(self, ids: list[str]) -> tuple[Array | int | None, ...]:
        """What ``_QUERY`` takes; a column that says nothing is null."""
        which = Integers(self.which) if len(self.templates) > 1 else None
        kwargs = Texts(self.kwargs) if any(text != "{}" for text in self.kwargs) else None
        keys = Texts(self.keys) if self.has_keys else None
        return Texts(self.templates), Uuids(ids), which, Texts(self.args), kwargs, keys, self.first


class Pager:
    """Cuts jobs into pages."""

    def __init__(self, ids: Ids, settle: Callable[[], None]) -> None:
        self._ids = ids
        self._settle = settle
        self._asked: Mapping[str, Any] | None = None  # of the job before: most ask for the same
        self._template = 0

    def pages(self, jobs: Iterable[Mapping[str, Any]]) -> Iterator[Page]:
        """The jobs, as they come, a page at a time.

        Raises:
            InvalidArgumentError: one of them holds what is no JSON; the message says which.
        """
        page = Page(0, _FIRST)
        for number, job in enumerate(jobs):
            if page.is_full:
                yield page
                page, self._asked = Page(number, min(2 * page.rows, _ROWS)), None
            try:
                self._add(page, number, job)
            except (TypeError, ValueError, AttributeError) as error:
                raise InvalidArgumentError(f"jobs[{number}]: {error}", "pass numbers, texts, booleans, lists and dicts") from error
        if page.args:
            yield page

    def _add(self, page: Page, number: int, job: Mapping[str, Any]) -> None:
        args, kwargs, key = job.get("args"), job.get("kwargs"), job.get("unique_key")
        args_text = "[]" if args in _EMPTY else _text(job, "args", args)
        kwargs_text = "{}" if kwargs in _EMPTY else _text(job, "kwargs", kwargs)
        asked = {name: value for name, value in job.items() if name not in _OWN}
        if key is not None:
            asked["unique_key"] = "*"
        if asked != self._asked:
            self._template = self._template_of(page, number, asked)
            self._asked = asked
        page.which.append(self._template)
        page.args.append(args_text)
        page.kwargs.append(kwargs_text)
        page.keys.append(None if key is None else _key(job, key))
        page.size += len(args_text) + len(kwargs_text)

    def _template_of(self, page: Page, number: int, asked: dict[str, Any]) -> int:
        asked = plain({name: classes(name, value) if name in CLASSES else value for name, value in asked.items()})
        if asked.get("depends_on"):
            if any(isinstance(parent, int) for parent in asked["depends_on"]):
                self._settle()
            asked["depends_on"] = [self._parent(page, number, parent) for parent in asked["depends_on"]]
        text = _text(asked, "options", asked)
        return page.templates.setdefault(text, len(page.templates) + 1)

    def _parent(self, page: Page, number: int, parent: Any) -> Any:
        """A number of a job before as its id; of this very page as the number there, because its ids are not made yet."""
        if not isinstance(parent, int) or isinstance(parent, bool):
            return parent
        if not 0 <= parent < number:
            raise ValueError(f"depends_on names job {parent} of this call, which is not before it")
        return str(self._ids[parent]) if parent < page.first else parent - page.first


def _text(job: Mapping[str, Any], name: str, value: Any) -> str:
    """A value as JSON that Postgres takes."""
    try:
        text = _encode(value)
        if not text.isascii():
            text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} of task {job.get('task')} is not JSON: {error}") from error
    if "\\u0000" in text and _ZERO.search(text):
        raise ValueError(f"{name} of task {job.get('task')} holds the character \\u0000, which Postgres does not take")
    return text


def _key(job: Mapping[str, Any], key: Any) -> str:
    """A unique key as text; a number as JSON writes it."""
    text = _text(job, "unique_key", key)
    return key if isinstance(key, str) else text


def with_parents(jobs: Iterable[Mapping[str, Any]], made: list[Any]) -> Iterator[dict[str, Any]]:
    """The jobs one by one, with ids in place of the numbers of those that were made before.

    Args:
        jobs: as ``enqueue_many`` takes them.
        made: the ids so far; whoever takes a job adds its id.

    Raises:
        InvalidArgumentError: a job names one that is not before it.
    """
    for number, job in enumerate(jobs):
        parents = job.get("depends_on") or ()
        for parent in parents:
            if isinstance(parent, int) and not 0 <= parent < number:
                raise InvalidArgumentError(f"jobs[{number}]: depends_on names job {parent} of this call, which is not before it")
        if any(isinstance(parent, int) for parent in parents):
            yield {**job, "depends_on": [made[parent] if isinstance(parent, int) else parent for parent in parents]}
        else:
            yield dict(job)


def enqueue_many(connection: Connection, jobs: Iterable[Mapping[str, Any]], *, own: bool) -> Ids:
    """Make jobs in one transaction, as they come, in the memory of few pages; the ids are 16 bytes each.

    Args:
        connection: whose transaction they join; where none is open, one of their own.
        jobs: mappings by the argument names of ``bridge.enqueue``.
        own: the connection is ours: the next page is made while Postgres writes the last one.
    """
    sending = _Sending(connection)
    with translated(), ExitStack() as stack:
        if connection.autocommit:
            stack.enter_context(connection.transaction())
        if own and not is_pooled(connection):
            stack.enter_context(connection.pipeline())
        for page in Pager(sending.ids, sending.settle).pages(jobs):
            sending.send(page)
        sending.settle()
    return sending.ids


class _Sending:
    """Pages that have been sent, and the ids of all."""

    def __init__(self, connection: Connection) -> None:
        self.ids = Ids()
        self._connection = connection
        self._open: list[tuple[int, Cursor[Any]]] = []

    def send(self, page: Page) -> None:
        """Send a page; in a pipeline Postgres is at work on it when this returns."""
        made = new_ids(len(page.args))
        self.ids.extend(made)
        cursor = plainly(self._connection)
        adapt(cursor)
        cursor.execute(_QUERY, page.parameters(made))
        # A pipeline keeps what the socket has no room for; so this also waits while Postgres is two pages behind.
        self._connection.wait(send(self._connection.pgconn))
        if page.has_keys:
            self._open.append((page.first, cursor))
            self.settle()

    def settle(self) -> None:
        """Read the answers that may tell of other jobs in the place of these."""
        for first, cursor in self._open:
            row = cursor.fetchone()
            if row is not None and row[0] is not None:
                self.ids.replace(first, row[0])
        self._open.clear()
