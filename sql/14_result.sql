-- What Celery keeps of a task id beyond a job's row: results of ids that have no job here (stored by hand, tasks that went straight to the
-- broker, steps of a chain that never ran), and groups that somebody saved.

do $$
begin
  if to_regclass('bridge.result') is null then
    create table bridge.result (
      id         uuid primary key,           -- as a job's: Celery's id, or the uuid5 of its text
      task_id    text not null,
      state      text not null,              -- Celery's word for it, or one of the user's own
      result     json,
      error      json,                       -- as a job's
      outcome    jsonb,                      -- as a finished job's
      stored_at  timestamptz not null,
      expires_at timestamptz
    );
    -- the tick's upkeep: what is over
    create index result_expires on bridge.result (expires_at) where expires_at is not null;

    create table bridge.saved_group (
      id         uuid primary key,
      members    json not null,              -- Celery's form of a GroupResult
      expires_at timestamptz
    );
    -- the tick's upkeep: what is over
    create index saved_group_expires on bridge.saved_group (expires_at) where expires_at is not null;
  end if;
end
$$;
