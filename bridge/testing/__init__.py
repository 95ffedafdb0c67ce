"""For the tests of applications: what must have been enqueued, and running it in the test's own process.

Nothing here needs pytest. The fixtures are in ``bridge.testing.plugin``; a project that wants them says so in its ``conftest.py``.
"""

from bridge.testing.expectations import assert_enqueued, enqueued, refute_enqueued
from bridge.testing.runner import run_jobs

__all__ = ["assert_enqueued", "enqueued", "refute_enqueued", "run_jobs"]
