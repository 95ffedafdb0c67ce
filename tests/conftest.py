"""What every test may ask for; the servers are in fix_servers.py."""

import os
import signal
import sys
from pathlib import Path

# A shell's background job ignores Ctrl-C, and so would every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# An activated environment has the Redis of a wheel first on PATH, and that one knows no TLS.
os.environ["PATH"] = os.pathsep.join(place for place in os.environ["PATH"].split(os.pathsep) if Path(place) != Path(sys.executable).parent)

pytest_plugins = [
    "fix_folders",
    "fix_servers",
    "fix_sql",
    "fix_floors",
    "fix_stack",
    "fix_proxy",
    "fix_calls",
    "fix_client",
    "fix_control",
    "fix_rabbitmq",
    "fix_redis",
    "fix_tls",
    "fix_flower",
    "fix_install",
    "fix_moving",
    "fix_pairs",
    "fix_standby",
    "fix_receiver",
    "fix_releases",
    "fix_transactions",
]
