"""Worked pipelines on one Celery application: `celery -A tasks worker` runs every one of them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery


def __getattr__(name: str) -> "Celery":
    """Give `tasks.app` (or `tasks.celery`) when it is first asked for.

    A file is decoded in a child process of its own, which lives under this package and would pay for Celery at every file
    if the application were built on import.

    Raises:
        AttributeError: any other name.
    """
    if name in {"app", "celery"}:
        from tasks.app import app  # noqa: PLC0415 (the reason stands in the docstring)

        globals()["app"] = app
        return app
    raise AttributeError(f"module 'tasks' has no attribute {name!r}")
