-- Messages that workers refused because no drainer with one of their keys had signed them (BRIDGE_ACCEPT=signed). Their rows, if they have
-- any, are not touched: counting is all that becomes of a refusal.

do $$
begin
  if to_regclass('bridge.refused_message') is null then
    create table bridge.refused_message (
      reason     text primary key,            -- see the view
      count      bigint not null,
      worker     text not null,               -- Celery's node name of who refused last
      refused_at timestamptz not null
    );
  end if;
end
$$;

create or replace function bridge.note_refused(p_worker text, p_counts jsonb) returns void language sql security definer
  set search_path = pg_catalog, pg_temp
  -- Add to how many messages were refused: a worker says it with its report, so that a flood of them is a row each few seconds.
  --
  --   p_counts  {reason: how many}
  begin atomic
    insert into bridge.refused_message as r (reason, count, worker, refused_at)
    select c.key, c.value::bigint, p_worker, clock_timestamp() from jsonb_each_text(p_counts) c order by c.key
    on conflict (reason) do update set count = r.count + excluded.count, worker = excluded.worker, refused_at = excluded.refused_at;
  end;

create or replace function bridge.refused_samples() returns table (name text, labels jsonb, value double precision) language sql stable
  set search_path = pg_catalog, pg_temp
  -- The counters of refused messages.
  begin atomic
    select 'bridge_messages_refused_total', jsonb_build_object('reason', k.reason), coalesce(r.count, 0)::double precision
    from unnest(array['unsigned', 'forged', 'unreadable']) k (reason) left join bridge.refused_message r on r.reason = k.reason;
  end;

-- unsigned: it has no signature, as messages of others, and of drainers without a key; forged: its signature is not that of its content,
-- or of no key that the worker knows; unreadable: it cannot be read far enough to tell.
select bridge.define_view('refused_messages', 'select r.reason, r.count, r.worker, r.refused_at from bridge.refused_message r');
