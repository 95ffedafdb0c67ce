"""The schema: its SQL files, installing and upgrading it, what that would change, and whether the installed one serves this process."""

from __future__ import annotations

from bridge.schema.files import files, script
from bridge.schema.installing import announce, apply, install, install_pipeline
from bridge.schema.preview import LEFT, Change, preview
from bridge.schema.version import check, installed_version

__all__ = ["LEFT", "Change", "announce", "apply", "check", "files", "install", "install_pipeline", "installed_version", "preview", "script"]
