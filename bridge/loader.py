"""Zero lines of code: ``CELERY_LOADER=bridge.loader.Loader`` joins every application of a process that names no loader of its own."""

from __future__ import annotations

from typing import Any

from celery.loaders.app import AppLoader

from bridge.application import install

__all__ = ["Loader"]


class Loader(AppLoader):
    """Celery's own loader, which also joins its application to the bridge."""

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        install(app)
