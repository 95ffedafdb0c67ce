"""`scripts/fuzz`: each target for so many seconds, led by what code each input has reached; exit code 1 when one found something."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from bridge import schema
from bridge.local.postgres import PostgresServer
from fuzzing.targets import EXAMPLES


@click.command()
@click.option("--seconds", default=60, show_default=True, help="How long, for each target.")
@click.option("--target", "names", multiple=True, type=click.Choice(list(EXAMPLES)), help="Which, again and again.  [default: all]")
@click.option("--folder", default=Path(".fuzz"), show_default=True, type=click.Path(path_type=Path), help="Has inputs and finds.")
def main(seconds: int, names: tuple[str, ...], folder: Path) -> None:
    """Feed what reads strangers' texts with inputs that a fuzzer grows from examples."""
    if importlib.util.find_spec("atheris") is None:
        raise click.ClickException('atheris is not installed: pip install "celery-bridge[fuzz]"')
    with TemporaryDirectory(prefix="fuzz") as place:
        Path(place).chmod(0o711)  # as root, Postgres is another's
        server = PostgresServer(Path(place) / "pg", "fuzz", settings={"fsync": "off"}).start()
        try:
            schema.install(server.dsn)
            failed = [name for name in names or EXAMPLES if not found_nothing(name, seconds, folder / name, server.dsn)]
        finally:
            server.stop()
    if failed:
        raise click.ClickException(f"found something in {', '.join(failed)}: see {folder}/*/crash-*, timeout-* and oom-*")
    click.echo("nothing found")


def found_nothing(name: str, seconds: int, folder: Path, dsn: str) -> bool:
    """Run one target in a process of its own."""
    (inputs := folder / "inputs").mkdir(parents=True, exist_ok=True)
    for number, example in enumerate(EXAMPLES[name]):
        (inputs / f"example-{number}").write_bytes(example)
    limits = [f"-max_total_time={seconds}", "-timeout=60", "-rss_limit_mb=2048", "-max_len=65536", f"-artifact_prefix={folder}/"]
    click.echo(f"{name}: {seconds} s")
    environment = {**os.environ, "BRIDGE_DATABASE_URL": dsn, "BRIDGE_BROKER_URL": "memory://"}
    command = [sys.executable, "-m", "fuzzing.one", name, *limits, "-print_final_stats=1", str(inputs)]
    return subprocess.run(command, check=False, env=environment).returncode == 0


if __name__ == "__main__":
    main()
