"""Tenants, from Python: let jobs belong to whom a session's claim names, so that each tenant meets its own alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.client import connection_of
from bridge.queries import tenants as stored

if TYPE_CHECKING:
    from bridge.queries.tenants import Tenant

__all__ = ["disable_tenants", "enable_tenants", "tenants"]


def enable_tenants(claim: str = "request.jwt.claims", key: str | None = "tenant_id", *, connection: Any = None) -> None:
    """Let jobs belong to tenants from now on; for the owner of the schema. Saying it again changes the claim.

    It builds an index on ended jobs, which writers of history wait for: do it early.

    Args:
        claim: the setting of a session that says whose request it serves, as PostgREST and Supabase set it; ``"role"``: the role that
            logs in, or is set, is the tenant. Whoever may run SQL of his own choice may set a setting: let such tenants log in themselves.
        key: where the tenant is in the claim's JSON, as ``"app_metadata.tenant_id"``; None: the setting itself is the tenant.
        connection: whose transaction to join, as for ``enqueue``.

    Raises:
        InvalidArgumentError: an argument can never work, or leads to what users write themselves.
        NotFoundError: a role of the bridge is missing.
    """
    stored.enable(connection_of(connection), claim, key)


def disable_tenants(*, connection: Any = None) -> bool:
    """Let jobs belong to nobody again; ``bridge_tenant`` may nothing then. What jobs say of their tenant stays.

    Returns:
        False when tenants were off.
    """
    return stored.disable(connection_of(connection))


def tenants(*, connection: Any = None) -> list[Tenant]:
    """Who has jobs, by name."""
    return stored.tenants(connection_of(connection))
