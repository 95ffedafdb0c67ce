"""How much tests try that go by chance, or through many cases: BRIDGE_TEST_EFFORT=20 is twenty times what the gate does."""

from __future__ import annotations

import os

EFFORT = int(os.environ.get("BRIDGE_TEST_EFFORT", "1"))
