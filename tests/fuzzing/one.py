"""One target under atheris: `python -m fuzzing.one NAME`, then libFuzzer's own words."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["bridge", "kombu", "celery.worker"]):
    from fuzzing.targets import Targets


def main() -> None:
    """Run until the time is over or something is found."""
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, Targets().all()[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
