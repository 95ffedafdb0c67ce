-- What a run tells while it runs: how far it is, lines of a log, and a checkpoint for the attempt after it.
--
-- Progress is a small column of the row in flight. Lines are only ever added, to a table of their own with a partition a day, which the
-- retention drops. A checkpoint is one row a job, in a table of its own. So a talkative job leaves nothing behind in the tables that
-- every claim and every start goes through.

do $$
begin
  if to_regclass('bridge.log_line') is null then
    create table bridge.log_line (
      id      uuid not null,                 -- the job
      run     uuid not null,
      attempt smallint not null,
      number  integer not null,              -- of the line in its run, from 1; lines that were left out are counted
      pos     bigint not null,               -- bytes of the run's messages up to and with this line
      at      timestamptz not null,
      level   text not null,
      message text not null
    ) partition by range (at);
    -- logs: the lines of a job; note: the last line of a run
    create index log_line_id on bridge.log_line (id, run, number);

    create table bridge.checkpoint (
      id         uuid primary key,           -- the job
      created_at timestamptz not null,       -- of the job: another job that gets this id later starts from nothing
      data       json not null,
      saved_at   timestamptz not null
    ) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);
  end if;
end
$$;

select bridge.make_days();

insert into bridge.setting (name, value, about) values
  ('log_lines',      '1000',   'lines of a log that are kept of each run: the first half and the last; 0 = none'),
  ('log_bytes',      '262144', 'bytes of log messages that are kept of each run: the first half and the last'),
  ('max_checkpoint', '65536',  'bytes of a checkpoint; larger ones are refused')
on conflict (name) do update set about = excluded.about where bridge.setting.about <> excluded.about;

create or replace function bridge.add_lines(p_seq bigint, p_run uuid, p_started_at timestamptz, p_lines json) returns void
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Add lines to the log of a run whose row in flight the caller has locked, and take out of its middle what is too much.
  --
  --   p_lines  [[seconds ago, level, message, lines left out before it, bytes of those], …]
  --
  -- A line belongs to the first half for good, or it is one of the last: both are told by its number and position alone.
  --
  -- Errors   23514 when no partition holds today: call bridge.make_days and repeat
  -- Index    log_line_id, of the days since the run began
declare
  v_most_lines constant integer := bridge.setting('log_lines');
  v_most_bytes constant bigint := bridge.setting('log_bytes');
  v_now constant timestamptz := clock_timestamp();
  v_id uuid;
  v_attempt integer;
  v_last bridge.log_line;
begin
  if v_most_lines = 0 then
    return;
  end if;
  select j.id, j.attempts + 1 into v_id, v_attempt from bridge.job j where j.seq = p_seq;
  select l.* into v_last from bridge.log_line l where l.id = v_id and l.run = p_run and l.at >= p_started_at order by l.number desc limit 1;
  with added as (
    insert into bridge.log_line (id, run, attempt, number, pos, at, level, message)
    select v_id, p_run, v_attempt, coalesce(v_last.number, 0) + sum(1 + coalesce((n.line->>3)::integer, 0)) over w,
      coalesce(v_last.pos, 0) + sum(octet_length(n.line->>2) + coalesce((n.line->>4)::bigint, 0)) over w,
      greatest(v_last.at, p_started_at, v_now - make_interval(secs => (n.line->>0)::double precision)), n.line->>1, n.line->>2
    from json_array_elements(p_lines) with ordinality n (line, place) window w as (order by n.place)
    returning number, pos
  )
  select max(a.number), max(a.pos) into v_last.number, v_last.pos from added a;
  if v_last.number > v_most_lines or v_last.pos > v_most_bytes then
    delete from bridge.log_line l
    where l.id = v_id and l.run = p_run and l.at >= p_started_at and (l.number > v_most_lines / 2 or l.pos > v_most_bytes / 2)
      and (l.number <= v_last.number - (v_most_lines + 1) / 2 or l.pos <= v_last.pos - v_most_bytes / 2);
  end if;
end
$$;

create or replace function bridge.note(p_seq bigint, p_run uuid, p_progress json default null, p_lines json default null) returns boolean
  language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- What a run has to tell, in one statement.
  --
  --   p_progress  how far it is; null: as before
  --   p_lines     as in bridge.add_lines; null: none
  --
  -- Returns  false when the run has been superseded: nothing was written
  -- Errors   23514 as bridge.add_lines
  -- Locks    the run's row in flight: two who add lines to one run take turns
declare
  v_started_at timestamptz;
begin
  if p_progress is not null then
    update bridge.inflight i set progress = p_progress where i.seq = p_seq and i.run = p_run returning i.started_at into v_started_at;
  else
    select i.started_at into v_started_at from bridge.inflight i where i.seq = p_seq and i.run = p_run for no key update;
  end if;
  if not found then
    return false;
  end if;
  if p_lines is not null then
    perform bridge.add_lines(p_seq, p_run, v_started_at, p_lines);
  end if;
  return true;
end
$$;

create or replace function bridge.note_by_id(p_id uuid, p_progress json, p_lines json) returns void language plpgsql
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Note something for whatever run has a job now.
  --
  -- Errors  JB002 when there is no such job, JB006 when it does not run
declare
  v_status text;
begin
  if bridge.note(j.seq, i.run, p_progress, p_lines) from bridge.job j join bridge.inflight i on i.seq = j.seq
      where j.id = p_id and i.run is not null then
    return;
  end if;
  select v.status into v_status from bridge.jobs v where v.id = p_id;
  if not found then
    perform bridge.refuse(format('job %s does not exist', coalesce(p_id::text, 'null')), 'see: select id, status from bridge.jobs', 'JB002');
  end if;
  perform bridge.refuse(format('job %s is %s', p_id, v_status), 'only a job that runs has progress and a log to add to', 'JB006');
end
$$;

create or replace function bridge.progress(id uuid, fraction double precision, message text default '') returns void language plpgsql
  security definer set search_path = pg_catalog, pg_temp as $$
  -- Say how far a running job has come: for the SQL and the programs that a task calls. Inside a Python task it is bridge.progress(…).
  --
  --   fraction  0 to 1
  --   message   one line for people; what is longer than 500 characters is cut
  --
  -- Errors   JB001 the fraction, JB002 no such job, JB006 the job does not run
begin
  if progress.fraction is null or not progress.fraction between 0 and 1 then
    perform bridge.refuse(format('fraction is %s', coalesce(progress.fraction::text, 'null')), 'give a number from 0 to 1');
  end if;
  perform bridge.note_by_id(progress.id,
    json_build_object('fraction', progress.fraction, 'message', left(coalesce(progress.message, ''), 500)), null);
end
$$;

create or replace function bridge.log(id uuid, message text, level text default 'info') returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp as $$
  -- Add a line to the log of a running job: for the SQL and the programs that a task calls. Inside a Python task it is bridge.log(…).
  --
  --   message  what is longer than 8192 characters is cut
  --   level    debug, info, warning, error or critical
  --
  -- Errors   JB001 the message or the level, JB002 no such job, JB006 the job does not run
begin
  if log.message is null then
    perform bridge.refuse('message is null', 'give a text');
  elsif log.level is null or log.level not in ('debug', 'info', 'warning', 'error', 'critical') then
    perform bridge.refuse(format('level is %L', log.level), 'give debug, info, warning, error or critical');
  end if;
  perform bridge.note_by_id(log.id, null, json_build_array(json_build_array(0, log.level, left(log.message, 8192))));
end
$$;

create or replace function bridge.logs(id uuid, attempt integer default null, since timestamptz default null)
  returns table (attempt_number integer, at timestamptz, level text, message text, number integer, left_out integer, run uuid)
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- The log of a job, oldest line first, while it runs and after.
  --
  --   attempt  of this attempt alone; null: of all
  --   since    from this moment on
  --
  -- left_out  lines of the same run that were left out just before this one, because there were too many
  --
  -- Errors   JB002 when there is no such job
begin
  if bridge.tenants_are_on() then
    perform bridge.require_own(array[logs.id]);
  end if;
  return query
    select l.attempt::integer, l.at, l.level, l.message, l.number,
      l.number - 1 - coalesce(lag(l.number) over (partition by l.run order by l.number), 0), l.run
    from bridge.log_line l where l.id = logs.id and (logs.attempt is null or l.attempt = logs.attempt) and (logs.since is null or l.at >= logs.since)
    order by l.at, l.run, l.number;
  if not found and not exists (select from bridge.jobs j where j.id = logs.id) then
    perform bridge.refuse(format('job %s does not exist', coalesce(logs.id::text, 'null')), 'see: select id, status from bridge.jobs', 'JB002');
  end if;
end
$$;

create or replace function bridge.save_checkpoint(id uuid, data json, run uuid default null) returns boolean language plpgsql
  security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- Keep what a later attempt of a job can go on from. It survives every retry, also by bridge.retry; a success forgets it.
  --
  --   data  any JSON; null forgets it
  --   run   only while this run has the job: what a worker gives, so that a run which was taken for dead spoils nothing
  --
  -- Returns  false when another run has the job
  -- Errors   JB002 when there is no such job, JB004 when the data is larger than the setting max_checkpoint
  -- Locks    the run's row in flight, against its end alone
declare
  v_most constant integer := bridge.setting('max_checkpoint');
  v_created_at timestamptz;
begin
  if octet_length(save_checkpoint.data::text) > v_most then
    perform bridge.refuse(format('data of the checkpoint of job %s is %s bytes, the limit is %s', save_checkpoint.id,
      octet_length(save_checkpoint.data::text), v_most), 'keep a reference instead, or raise the setting max_checkpoint', 'JB004');
  end if;
  if save_checkpoint.run is not null then
    select j.created_at into v_created_at from bridge.job j join bridge.inflight i on i.seq = j.seq
    where j.id = save_checkpoint.id and i.run = save_checkpoint.run for key share of i;
    if not found then
      return false;
    end if;
  else
    select v.created_at into v_created_at from bridge.jobs v where v.id = save_checkpoint.id;
    if not found then
      perform bridge.refuse(format('job %s does not exist', coalesce(save_checkpoint.id::text, 'null')),
        'see: select id, status from bridge.jobs', 'JB002');
    end if;
  end if;
  if coalesce(json_typeof(save_checkpoint.data), 'null') = 'null' then
    delete from bridge.checkpoint c where c.id = save_checkpoint.id;
  else
    insert into bridge.checkpoint as c (id, created_at, data, saved_at)
    values (save_checkpoint.id, v_created_at, save_checkpoint.data, clock_timestamp())
    on conflict on constraint checkpoint_pkey do update set created_at = excluded.created_at, data = excluded.data, saved_at = excluded.saved_at;
  end if;
  return true;
end
$$;

create or replace function bridge.checkpoint(id uuid) returns json language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
  -- What an attempt of a job has saved last; null when there is nothing.
begin
  return (select c.data from bridge.checkpoint c where c.id = checkpoint.id and c.created_at = coalesce(
    (select j.created_at from bridge.job j where j.id = checkpoint.id), (select f.created_at from bridge.finished f where f.id = checkpoint.id)));
end
$$;
