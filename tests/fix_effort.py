"""How much tests try that go by chance, or through many cases: BRIDGE_TEST_EFFORT=20 is twenty times what the gate does."""

from __future__ import annotations

import os

import pytest

EFFORT = int(os.environ.get("BRIDGE_TEST_EFFORT", "1"))
LONG = pytest.mark.skipif(EFFORT < 2, reason="takes minutes: with BRIDGE_TEST_EFFORT of 2 or more")
