"""The page on transactional completion is followed, against a real worker."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from fix_documents import blocks_of
from fix_servers import ROOT, wait_for_value

if TYPE_CHECKING:
    from pathlib import Path

    from fix_servers import Launcher, StartDrainer, StartWorker


def test_the_example_of_the_page_works(launcher: Launcher, drainer: StartDrainer, worker: StartWorker, dsn: str, tmp_path: Path) -> None:
    written, followed = blocks_of(ROOT / "docs/transactional-completion.md")
    (tmp_path / written.name).write_text(written.text)
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    drainer()
    worker("bank", concurrency=1, env=paths)
    command, environment = [sys.executable, "-c", followed.text], launcher.environment(paths)
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=90)
    assert (done.returncode, done.stdout) == (0, "ada has 15\n"), done.stderr
    wait_for_value(dsn, "select outcome->'completed' from bridge.jobs where task = 'bank.deposit'", value=True)
    wait_for_value(dsn, "select balance from account", value=15)
