"""One child process: a log file, a real probe for readiness, an end that is bounded in time."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from bridge.errors import ServerError
from bridge.local.account import identity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from bridge.local.account import Account

PR_SET_PDEATHSIG = 1
POLL = 0.03  # seconds between two probes; a probe costs about a millisecond
TAIL = 2000  # characters of a log that an error shows

Step = tuple[signal.Signals, float]
POLITE: tuple[Step, ...] = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))


class Process:
    """A program that runs until it is stopped, and never longer than the process that started it.

    On Linux the kernel sends `death_signal` to the child when the thread that started it ends, however it ends: start
    processes from a thread that lives as long as they should.

    Args:
        name: what errors and log files call it.
        command: program and arguments.
        log: file that takes its standard output and error; emptied at each start.
        env: the whole environment; None hands on our own.
        cwd: folder to run in.
        account: user to drop to; only root can ask for one.
        stop_steps: signals that `stop` sends one after the other, each with the seconds it waits for the end.
        death_signal: what the child gets when this process dies.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        account: Account | None = None,
        stop_steps: tuple[Step, ...] = POLITE,
        death_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self.log = log
        self.env = env
        self.cwd = cwd
        self.account = account
        self.stop_steps = stop_steps
        self.death_signal = death_signal
        self._child: subprocess.Popen[bytes] | None = None
        self._asked = False

    def start(self) -> None:
        """Start the program and return at once; see `wait_ready`.

        Raises:
            ServerError: it runs already, or the program cannot be executed.
        """
        if self.alive:
            raise ServerError(f"{self.name} runs already with pid {self.pid}")
        self._asked = False
        out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            self._child = self._spawn(out)
        except OSError as error:
            raise ServerError(f"cannot start {self.name}: {self.command[0]}: {error.strerror}") from error
        finally:
            os.close(out)

    def wait_ready(self, ready: Callable[[], bool], timeout: float = 30.0) -> None:
        """Wait until the probe says yes.

        Args:
            ready: asks the program itself; called every 30 ms.
            timeout: seconds until we give up and stop it.

        Raises:
            ServerError: the program ended, or the time is over; the text carries the end of its log.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.alive:
                raise ServerError(f"{self.name} ended with status {self.returncode} before it was ready: {self.log_tail()}")
            if time.monotonic() > deadline:
                self.stop()
                raise ServerError(f"{self.name} was not ready within {timeout:g} s: {self.log_tail()}")
            time.sleep(POLL)

    @property
    def pid(self) -> int:
        """The process id of the running or last run program.

        Raises:
            ServerError: it was never started.
        """
        return self._started().pid

    @property
    def returncode(self) -> int | None:
        """How it ended, as in `subprocess`; None while it runs or when it was never started."""
        return None if self._child is None else self._child.poll()

    @property
    def alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self._child is not None and self._child.poll() is None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the program alone, not to its children; nothing happens when it has ended."""
        if self.alive:
            self._started().send_signal(number)

    def wait(self, timeout: float = 10.0) -> int:
        """Wait for the end and return its status.

        Raises:
            ServerError: it still runs after `timeout` seconds.
        """
        try:
            return self._started().wait(timeout)
        except subprocess.TimeoutExpired:
            raise ServerError(f"{self.name} with pid {self.pid} still runs after {timeout:g} s") from None

    def ask_to_stop(self) -> None:
        """Send the first of `stop_steps` and return at once, so that several can end at the same time; `stop` goes on from there."""
        if not self._asked:
            self.kill(self.stop_steps[0][0])
            self._asked = True

    def stop(self) -> None:
        """End the program by `stop_steps`, then whatever is left of its session; safe to repeat."""
        if self._child is None:
            return
        self.ask_to_stop()
        for step, (number, patience) in enumerate(self.stop_steps):
            if step > 0:
                self.kill(number)
            try:
                self._child.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            break
        self._sweep_session()

    def log_text(self) -> str:
        """What the program has written so far."""
        try:
            return self.log.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def log_tail(self) -> str:
        """The end of the log and where the rest is, as an error shows it."""
        return f"{self.log_text()[-TAIL:].strip()} (log: {self.log})"

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise ServerError(f"{self.name} was not started")
        return self._child

    def _spawn(self, out: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=self.env,
            cwd=self.cwd,
            # A session of its own keeps the terminal's Ctrl-C away from it: we stop children in order.
            start_new_session=True,
            preexec_fn=die_with_parent(self.death_signal),  # noqa: PLW1509 - two system calls, prepared before the fork
            **identity(self.account),
        )

    def _sweep_session(self) -> None:
        # A worker that had to be killed leaves pool children behind; they share its session, which nobody else is in. The system gives
        # its number to no process while they are there: where one has it, they are gone, and that group is somebody else's.
        if not self.alive and _exists(self.pid):
            return
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Make the function that a child calls between fork and exec so that the kernel signals it when its parent dies.

    It must run after the change of user, which clears the request; `subprocess` calls it there.

    Returns:
        None where the kernel has no such request (anything but Linux).
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def request() -> None:
        prctl(PR_SET_PDEATHSIG, int(number))
        # The parent may have died before the request stood.
        if os.getppid() != parent:
            os._exit(1)

    return request
