"""Processes whose clocks are wrong."""

from __future__ import annotations

import os
from pathlib import Path

from fix_servers import ROOT, missing

SHIFT = 600  # seconds
# libfaketime 0.9.10 takes the shifted clock for that of clock_nanosleep, by which Python sleeps.
SLEEP = "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds) and None\n"


HOW_TO_GET_IT = "apt-get install faketime"


def find_faketime() -> Path | None:
    """The library that shifts a process's clock."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


def shifted(seconds: int, folder: Path) -> dict[str, str]:
    """Environment of a process whose clock is so many seconds ahead."""
    (folder / "sitecustomize.py").write_text(SLEEP)
    found = find_faketime()
    if found is None:
        missing("libfaketime", HOW_TO_GET_IT)
    path = os.pathsep.join(map(str, (folder, ROOT, ROOT / "tests")))
    return {"LD_PRELOAD": str(found), "FAKETIME": f"{seconds:+d}s", "DONT_FAKE_MONOTONIC": "1", "PYTHONPATH": path}
