"""Workflows and batches as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from bridge.cli.tables import ago, one_line, print_json, print_table, span, status_text
from bridge.records import shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from bridge.queries.batches import Batch
    from bridge.queries.flows import Node

__all__ = ["print_batch", "print_batches", "print_workflow"]

_STATUSES = ("blocked", "scheduled", "queued", "published", "running", "succeeded", "failed", "cancelled", "expired")


def print_workflow(nodes: Sequence[Node], *, as_json: bool = False) -> None:
    """Print what is connected: on a terminal as a tree, each node once, below the last of those it comes after; elsewhere a line each."""
    if as_json:
        print_json(nodes)
        return
    console = Console()
    if console.is_terminal:
        for root in _trees(nodes):
            console.print(root)
        return
    rows: list[list[str | Text]] = [[str(n.node), n.kind, n.name, status_text(n.status), _joined(n), n.error or ""] for n in nodes]
    print_table(("id", "kind", "name", "status", "after", "error"), rows)


def _joined(node: Node) -> str:
    return ", ".join(f"{relation} {parent}" for parent, relation in zip(node.parents, node.relations, strict=True))


def _trees(nodes: Sequence[Node]) -> list[Tree]:
    """Each node in a tree below the last of its parents, so that what it waits for stands above it."""
    known = {node.node: node for node in nodes}
    place = {node.node: number for number, node in enumerate(nodes)}
    roots: list[Tree] = []
    branches = {node.node: Tree(_label(node, known)) for node in nodes}
    for node in nodes:
        above = [parent for parent in node.parents if parent in known and parent != node.node]
        (branches[max(above, key=lambda parent: place[parent])].children if above else roots).append(branches[node.node])
    return roots


def _label(node: Node, known: dict[UUID, Node]) -> Text:
    kind = "" if node.kind == "job" else f"{node.kind} "
    took = span((node.finished_at - node.started_at).total_seconds()) if node.started_at and node.finished_at else ""
    label = Text.assemble(kind, (shown(node.name), "bold"), " ", status_text(node.status), " ", (took, "dim"), " ", (str(node.node), "dim"))
    after = [
        f"{relation} {known[parent].name if parent in known else parent}"
        for parent, relation in zip(node.parents, node.relations, strict=True)
    ]
    if len(after) > 1:
        label.append(f"  ({one_line(', '.join(after), 80)})", style="dim")
    if node.error:
        label.append(f"  {one_line(node.error, 80)}", style="red")
    label.no_wrap, label.overflow = True, "ellipsis"
    return label


def print_batches(found: Sequence[Batch], *, as_json: bool = False) -> None:
    """Print many batches, a row each."""
    if as_json:
        print_json(found)
        return
    people = Console().is_terminal
    rows: list[list[str | Text]] = [
        [
            str(batch.id), batch.name or "", status_text(batch.status), f"{batch.ended}/{batch.total}", str(batch.failed),
            batch.callback or "", ago(batch.created_at) if people else batch.created_at.isoformat(),
        ]
        for batch in found
    ]  # fmt: skip
    print_table(("id", "name", "status", "ended", "failed", "callback", "created"), rows, keep=("id", "status", "ended"))


def print_batch(batch: Batch, *, as_json: bool = False) -> None:
    """Print one batch whole."""
    if as_json:
        print_json(batch)
        return
    counts = ", ".join(f"{count} {status}" for status in _STATUSES if (count := getattr(batch, status)))
    facts: list[tuple[str, Any]] = [
        ("id", batch.id), ("name", batch.name), ("status", batch.status),
        ("ended", f"{batch.ended} of {batch.total} ({batch.progress:.0%})"),
        ("jobs", counts), ("callback", batch.callback and f"{batch.callback} on {batch.callback_on}"), ("its job", batch.callback_job),
        ("created", _moment(batch.created_at)), ("sealed", _moment(batch.sealed_at)), ("cancelled", _moment(batch.cancelled_at)),
        ("over", _moment(batch.ended_at)),
    ]  # fmt: skip
    print_table(("", ""), [(name, str(value)) for name, value in facts if value])


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.isoformat(sep=' ', timespec='milliseconds')} ({ago(moment)})"
