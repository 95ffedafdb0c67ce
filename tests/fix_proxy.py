"""Networks that fail: proxies before the servers of a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from laboratory.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fix_servers import RedisServer


@pytest.fixture
def redis_proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    """A proxy before this test's Redis."""
    proxy = Proxy(redis_server.port)
    yield proxy
    proxy.close()
