"""Secrets by reference: what is refused in clear, who reads the vault, who says what the vault is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from click.testing import CliRunner

import bridge
from bridge.cli import main
from bridge.client import forget_connections
from bridge.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from fix_sql import Session

PLANTED = "sk_live_PLANTED51aDmTz8"
VAULT = """
    create schema app;
    create table app.kept (name text primary key, value text not null);
    insert into app.kept values ('crm', 'from the vault');
    create function app.read_secret(name text) returns text language sql stable as $$ select value from app.kept k where k.name = $1 $$;
    update bridge.setting set value = '"app.read_secret"' where name = 'secret_function'
"""


def refused(db: Session, statement: str, *values: Any) -> str:
    """The words of a refusal, which never repeat what was planted."""
    with pytest.raises(psycopg.Error) as refusal:
        db.rows(statement, *values)
    diag = refusal.value.diag
    said = f"{diag.sqlstate} {diag.message_primary}: {diag.message_hint} {diag.message_detail}"
    assert PLANTED not in said
    return said


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Authorization": f"Bearer {PLANTED}"}, "header Authorization has a secret in clear"),
        ({"X-Api-Key": "plain"}, "header X-Api-Key has a secret in clear"),
        ({"Cookie": "session=1"}, "header Cookie has a secret in clear"),
        ({"X-Team": PLANTED}, "header X-Team has a secret in clear"),
        ({"X-Team": "bearer abc"}, "header X-Team has a secret in clear"),
        ({"Authorization": {"secret": PLANTED}}, "neither a plain text nor a reference"),
        ({"Authorization": {"secret": "env:Shop"}}, "neither a plain text nor a reference"),
        ({"Authorization": {"secret": "env:shop", "before": PLANTED}}, "neither a plain text nor a reference"),
        ({"Authorization": {"secret": "env:shop", "then": "x"}}, "neither a plain text nor a reference"),
        ({"X-Team": "a\r\nX-Other: b"}, "neither a plain text nor a reference"),
        ({"Host": "elsewhere"}, "headers names 'Host'"),
        ({"webhook-signature": "v1,x"}, "headers names 'webhook-signature'"),
        ({"a b": "x"}, "headers names 'a b'"),
        ([1], "headers is a JSON array"),
    ],
)  # fmt: skip
def test_a_header_that_is_none_or_a_secret_in_clear_is_refused(db: Session, headers: Any, said: str) -> None:
    call = "select bridge.set_webhook('w', 'https://example.org/', headers => %s::jsonb)"
    assert f"JB001 {said}" in refused(db, call, json.dumps(headers)) or said in refused(db, call, json.dumps(headers))
    assert db.rows("select * from bridge.callbacks") == []


def test_headers_are_kept_as_references_and_no_job_holds_them(db: Session) -> None:
    headers = {"X-Team": "ops", "Authorization": {"secret": "env:shop", "before": "Bearer "}}
    call = "select bridge.set_webhook('w', 'https://example.org/', headers => %s::jsonb)"
    assert [db.one(call, json.dumps(given)) for given in (headers, headers, {})] == ["created", "unchanged", "changed"]
    db.one(call, json.dumps(headers))
    assert db.one("select headers from bridge.callbacks") == headers
    db.enqueue()
    claim, run = db.run()
    db.finish(claim, run)
    (kwargs,) = db.rows("select kwargs from bridge.jobs where task = 'bridge.deliver_webhook'")[0]
    assert "shop" not in json.dumps(kwargs)


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        ("headers", {"Authorization": f"Bearer {PLANTED}"}, "headers of the schedule has a secret in clear: Authorization"),
        ("kwargs", {"crm": {"api_key": PLANTED}}, "kwargs of the schedule has a secret in clear: api_key"),
        ("kwargs", {"password": "hunter2"}, "kwargs of the schedule has a secret in clear: password"),
        ("kwargs", {"tokens": ["fine"], "names": [PLANTED]}, "kwargs of the schedule has a secret in clear: names"),
        ("args", [1, PLANTED], "args of the schedule has a secret in clear: a value"),
    ],
)
def test_a_schedule_keeps_no_secret_in_clear(db: Session, argument: str, value: Any, said: str) -> None:
    assert f"JB001 {said}" in refused(db, f"select bridge.schedule('s', '@daily', 't', {argument} => %s::jsonb)", json.dumps(value))
    db.do(
        "select bridge.schedule('s', '@daily', 't', kwargs => %s::jsonb)",
        json.dumps({"api_key": {"secret": "env:crm"}, "tokens": 3, "token": ""}),
    )
    assert f"JB001 {said}" in refused(db, f"update bridge.schedule set {argument} = %s::jsonb", json.dumps(value))


def test_the_vault_answers_workers_about_names_that_operators_wrote(db: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    db.do(VAULT)
    assert "JB002 no callback and no schedule names the secret 'crm'" in refused(db, "select bridge.secret('crm')")
    db.do("select bridge.schedule('s', '@daily', 't', args => '[{\"secret\": \"vault:crm\"}, {\"secret\": \"vault:other\"}]')")
    db.do("select bridge.set_notifier('n', 'vault:ops'), bridge.set_webhook('w', 'https://example.org/', secret => 'vault:sign')")
    with db.connection.transaction():
        db.do("set local role bridge_worker")
        assert db.one("select bridge.secret('crm')") == "from the vault"
    for name in ("other", "ops", "sign"):
        assert f"JB002 secret '{name}' is not in the vault" in refused(db, f"select bridge.secret('{name}')")
    for role in ("producer", "operator", "viewer"):
        with db.connection.transaction(force_rollback=True):
            db.do(f"set local role bridge_{role}")
            assert refused(db, "select bridge.secret('crm')").startswith("42501")
    own = """select bridge.enqueue('t', webhook => '{"url": "https://example.org/", "secret": "vault:crm"}')"""
    assert "JB001 secret of a job's own webhook is in the vault" in refused(db, own)
    monkeypatch.setenv("BRIDGE_DATABASE_URL", db.dsn)
    monkeypatch.setenv("BRIDGE_SECRET_CRM", " from the environment\n")
    forget_connections()
    assert bridge.secret("vault:crm") == bridge.secret({"secret": "vault:crm"}) == "from the vault"
    assert bridge.secret("env:crm") == "from the environment"
    with pytest.raises(NotFoundError, match="BRIDGE_SECRET_NONE is not set"):
        bridge.secret("env:none")
    for wrong in (PLANTED, "env:PATH", {"secret": 7}, "file:/etc/passwd"):
        with pytest.raises(InvalidArgumentError, match="named by no reference") as refusal:
            bridge.secret(wrong)
        assert str(wrong) not in str(refusal.value)
    done = CliRunner().invoke(
        main, ["callbacks", "set-webhook", "crm", "https://example.org/", "--headers", '{"X-Api-Key": {"secret": "vault:crm"}}']
    )
    assert done.exit_code == 0, done.output
    assert db.one("select headers from bridge.callbacks where name = 'crm'") == {"X-Api-Key": {"secret": "vault:crm"}}
    forget_connections()


def test_where_there_is_no_vault_or_no_function_it_says_so(db: Session) -> None:
    db.do("select bridge.set_notifier('n', 'vault:ops')")
    assert "JB002 there is no vault in this database: install one, or name a function" in refused(db, "select bridge.secret('ops')")
    db.do("create schema vault")
    db.do("create view vault.decrypted_secrets as select 'ops'::text as name, 'json://127.0.0.1'::text as decrypted_secret")
    assert db.one("select bridge.secret('ops')") == "json://127.0.0.1"
    db.do(VAULT)
    db.do("drop function app.read_secret")
    assert "names app.read_secret(text), which does not exist" in refused(db, "select bridge.secret('ops')")


def test_only_the_owner_says_what_reads_secrets(db: Session) -> None:
    change = "update bridge.setting set value = %s::jsonb where name = 'secret_function'"
    with db.connection.transaction(force_rollback=True):
        db.do("set local role bridge_operator")
        assert "JB008 role bridge_operator may not change the setting secret_function" in refused(db, change, '"pg_catalog.upper"')
    with db.connection.transaction(force_rollback=True):
        db.do("set local role bridge_operator")
        db.do("update bridge.setting set value = '7' where name = 'window'")
    for wrong in ('"no.such"', '"pg_catalog.length"', "5"):
        assert "JB001 setting secret_function is" in refused(db, change, wrong) or "invalid name" in refused(db, change, wrong)
    db.do(change, '"pg_catalog.upper"')
    db.do(change, '""')
