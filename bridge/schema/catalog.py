"""What the schema in a database is made of, as Postgres's catalogs say; for comparing two of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg.rows import tuple_row

if TYPE_CHECKING:
    import psycopg

__all__ = ["KINDS", "Catalog", "read"]

# An object, by its kind and name, and all that it is made of, as text.
Catalog = dict[tuple[str, str], str]

# In the order in which they are told.
KINDS = (
    "version", "table", "column", "type", "sequence", "constraint", "index", "trigger", "policy", "view", "function", "setting", "grant",
)  # fmt: skip

# Partitions of days come and go: they are made as their table is. With search_path empty every name comes with its schema.
_OBJECTS = """
with r as (
  select c.oid, c.oid::regclass::text as name, c.relkind, c.relpersistence, c.reloptions,
    c.relowner, c.relacl
  from pg_class c where c.relnamespace = 'bridge'::regnamespace and not c.relispartition
)
select 'version', 'bridge', bridge.version()
union all
select 'table', r.name, concat_ws(' ', case r.relpersistence when 'u' then 'unlogged' end, pg_get_partkeydef(r.oid),
  array_to_string(r.reloptions, ' '))  -- row security comes and goes with tenants
from r where r.relkind in ('r', 'p')
union all
-- The place of a column counts: pg_dump writes it, and rows of a table are read by it.
select case r.relkind when 'c' then 'type' else 'column' end, format('%s.%I', r.name, a.attname),
  concat_ws(' ', '#' || row_number() over (partition by r.oid order by a.attnum), format_type(a.atttypid, a.atttypmod),
    case when a.attnotnull then 'not null' end, 'default ' || pg_get_expr(d.adbin, d.adrelid), nullif(a.attidentity, ''),
    nullif(a.attgenerated, ''), 'statistics ' || nullif(a.attstattarget, -1),
    (select string_agg(o, ' ' order by o) from unnest(a.attoptions) o where o like 'n_distinct%'))
from r join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where r.relkind in ('r', 'p', 'c')
union all
select 'sequence', r.name, concat_ws(' ', s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcache, s.seqcycle)
from r join pg_sequence s on s.seqrelid = r.oid
union all
select 'constraint', format('%s.%I', r.name, n.conname), pg_get_constraintdef(n.oid) from r join pg_constraint n on n.conrelid = r.oid
union all
select 'index', r.name, concat_ws(' ', pg_get_indexdef(r.oid), case when r.relkind = 'i' and not i.indisvalid then '(invalid)' end)
from r join pg_index i on i.indexrelid = r.oid
union all
select 'trigger', format('%s.%I', r.name, t.tgname), concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled)
from r join pg_trigger t on t.tgrelid = r.oid and not t.tgisinternal
union all
select 'policy', format('%s.%I', r.name, p.polname), concat_ws(' ', p.polcmd, p.polpermissive, p.polroles::regrole[],
  pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
from r join pg_policy p on p.polrelid = r.oid
union all
-- The comment says which text it was made from: an install replaces a view when that is another.
select 'view', r.name,
  concat_ws(' ', pg_get_viewdef(r.oid), array_to_string(r.reloptions, ' '), e'\n' || obj_description(r.oid, 'pg_class'))
from r where r.relkind in ('v', 'm')
union all
-- Two functions are constants that rules and tenants write anew, and an install leaves as they are.
select 'function', p.oid::regprocedure::text,
  case when p.proname not in ('tasks_are_ruled', 'tenants_are_on') then pg_get_functiondef(p.oid) else '' end
from pg_proc p
where p.pronamespace = 'bridge'::regnamespace and p.prokind <> 'a'
union all
select 'setting', s.name, '' from bridge.setting s
union all
-- The owner's own rights say nothing: another role may own what this is compared with.
select 'grant', format('%s on %s to %s', g.privilege, g.name, case g.grantee when 0 then 'public' else g.grantee::regrole::text end), ''
from (
  select r.relowner, r.name, x.privilege_type, x.grantee from r, aclexplode(r.relacl) x
  union all
  select r.relowner, format('%s.%I', r.name, a.attname), x.privilege_type, x.grantee
  from r join pg_attribute a on a.attrelid = r.oid, aclexplode(a.attacl) x
  union all
  select p.proowner, p.oid::regprocedure::text, x.privilege_type, x.grantee
  from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x where p.pronamespace = 'bridge'::regnamespace
  union all
  select n.nspowner, 'schema bridge', x.privilege_type, x.grantee from pg_namespace n, aclexplode(n.nspacl) x where n.nspname = 'bridge'
) g (owner, name, privilege, grantee)
where g.grantee <> g.owner"""


def read(connection: psycopg.Connection) -> Catalog:
    """All objects of schema ``bridge``, in an open transaction whose search_path is empty."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        return {(kind, name): text for kind, name, text in cursor.execute(_OBJECTS)}
