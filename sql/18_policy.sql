-- Retry policies: what jobs of a task, or of a queue, do when they fail and how long they may take, where they do not say it themselves.
-- They are read when they are needed (a failure, a claim), so a change counts for jobs that wait already, and costs an enqueue nothing.

do $$
begin
  if to_regclass('bridge.retry_policy') is null then
    create table bridge.retry_policy (
      scope        text not null,            -- whose: of a task or of a queue
      name         text not null,
      max_attempts smallint,                 -- null, here and below: not said
      backoff      jsonb,
      retry_on     text[],                   -- classes of errors after which there is a further attempt; null: all
      never_on     text[],                   -- classes of errors after which there is none
      timeout      interval,                 -- hard limit of one attempt
      soft_timeout interval,                 -- soft limit of one attempt
      deadline     interval,                 -- of all attempts, from when the first is due
      changed_at   timestamptz not null,
      constraint retry_policy_is_of_one_task_or_queue primary key (scope, name),
      constraint retry_policy_scope_is_known check (scope in ('task', 'queue'))
    );
  end if;
end
$$;

-- The policies, one a row; what one does not say is null.
select bridge.define_view('retry_policies', $view$
  select case p.scope when 'task' then p.name end as task, case p.scope when 'queue' then p.name end as queue, p.max_attempts::integer as max_attempts,
    p.backoff, p.retry_on, p.never_on, p.timeout, p.soft_timeout, p.deadline, p.changed_at
  from bridge.retry_policy p
$view$);

create or replace function bridge.rules_of(p_job bridge.job) returns bridge.retry_policy language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- What counts for one job, rule by rule: its own word, else its task's policy, else its queue's, else the default.
declare
  v_task bridge.retry_policy;
  v_queue bridge.retry_policy;
  v_rules bridge.retry_policy;
begin
  select p.* into v_task from bridge.retry_policy p where p.scope = 'task' and p.name = p_job.task;
  select p.* into v_queue from bridge.retry_policy p where p.scope = 'queue' and p.name = p_job.queue;
  v_rules.max_attempts := coalesce(case when p_job.options ? 'max_attempts' then p_job.max_attempts end, v_task.max_attempts, v_queue.max_attempts,
    p_job.max_attempts);
  v_rules.backoff := coalesce(p_job.backoff, v_task.backoff, v_queue.backoff);
  v_rules.retry_on := coalesce(bridge.texts(p_job.options->'retry_on'), v_task.retry_on, v_queue.retry_on);
  v_rules.never_on := coalesce(bridge.texts(p_job.options->'never_on'), v_task.never_on, v_queue.never_on);
  v_rules.timeout := coalesce(v_task.timeout, v_queue.timeout);
  v_rules.soft_timeout := coalesce(v_task.soft_timeout, v_queue.soft_timeout);
  v_rules.deadline := coalesce(v_task.deadline, v_queue.deadline);
  return v_rules;
end
$$;

create or replace function bridge.texts(p_array jsonb) returns text[] language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- A JSON array of texts as an array; null stays null.
begin
  return case jsonb_typeof(p_array) when 'array' then array(select jsonb_array_elements_text(p_array)) end;
end
$$;
