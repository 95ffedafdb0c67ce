-- What follows a failure: another attempt or the end, by the job's own rules, the policies of its task and its queue, and its deadline.

create or replace function bridge.check_backoff(p_backoff jsonb) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse a retry policy that is none of: a list of seconds, a number of seconds, or an object with base, factor, cap and jitter.
declare
  v_longest constant integer := 31536000;
begin
  case jsonb_typeof(p_backoff)
    when 'number' then
      if p_backoff::numeric between 0 and v_longest then return; end if;
    when 'array' then
      if jsonb_array_length(p_backoff) > 0
        and not exists (select from jsonb_array_elements(p_backoff) e where jsonb_typeof(e) <> 'number' or e::text::numeric not between 0 and v_longest) then
        return;
      end if;
    when 'object' then
      if not exists (select from jsonb_each(p_backoff) e
          where e.key not in ('base', 'factor', 'cap', 'jitter') or jsonb_typeof(e.value) <> 'number'
            or e.value::numeric not between 0 and case e.key when 'jitter' then 1 when 'factor' then 1000 else v_longest end) then
        return;
      end if;
    else null;
  end case;
  perform bridge.refuse(format('backoff is %s', left(p_backoff::text, 80)),
    'give seconds (30), a list of seconds ([60, 300, 900]) or {"base": 10, "factor": 2, "cap": 3600, "jitter": 0.1}; a year at most, jitter 0 to 1');
end
$$;

create or replace function bridge.check_classes(p_name text, p_classes text[]) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse what names no classes of errors. Whether a class exists only a worker could tell.
declare
  v_class text;
begin
  if p_classes = '{}' then
    perform bridge.refuse(format('%s is empty', p_name), 'name classes of errors, ValueError or requests.exceptions.Timeout, or give null');
  end if;
  foreach v_class in array coalesce(p_classes, '{}') loop
    if v_class is null or v_class !~ '^[[:alpha:]_]\w*(\.[[:alpha:]_]\w*)*$' then
      perform bridge.refuse(format('%s names %L, which is no class of errors', p_name, left(v_class, 80)), 'give names as ValueError or requests.exceptions.Timeout');
    end if;
  end loop;
end
$$;

create or replace function bridge.check_moment(p_name text, p_moment timestamptz, p_now timestamptz) returns void language plpgsql immutable
  set search_path = pg_catalog, pg_temp as $$
  -- Refuse a moment that is none, such as infinity, or of another age: programs that read the job have no such dates.
begin
  if p_moment not between p_now - interval '1000 years' and p_now + interval '100 years' then
    perform bridge.refuse(format('%s is %s', p_name, p_moment), 'give a moment within the next 100 years, or null for none');
  end if;
end
$$;

create or replace function bridge.check_delay(p_name text, p_delay interval) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse an interval from now that is negative or longer than a life.
begin
  if p_delay not between interval '0' and interval '100 years' then
    perform bridge.refuse(format('%s is %s', p_name, justify_interval(p_delay)), 'give an interval from now that is not negative, of 100 years at most');
  end if;
end
$$;

create or replace function bridge.check_retry(p_asked bridge.job_request) returns void language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Refuse rules of retrying that contradict each other or can never be.
begin
  if p_asked.soft_timeout <= interval '0' then
    perform bridge.refuse(format('soft_timeout is %s', justify_interval(p_asked.soft_timeout)), 'give a positive interval, or null for no limit');
  elsif p_asked.soft_timeout >= p_asked.timeout then
    perform bridge.refuse(format('soft_timeout is %s, not before timeout, %s', p_asked.soft_timeout, p_asked.timeout), 'give a shorter interval');
  elsif p_asked.deadline <= interval '0' or p_asked.deadline > interval '100 years' then
    perform bridge.refuse(format('deadline is %s', p_asked.deadline), 'give a positive interval from when the job is due, of 100 years at most');
  end if;
  if p_asked.backoff is not null then
    perform bridge.check_backoff(p_asked.backoff);
  end if;
  perform bridge.check_classes('retry_on', p_asked.retry_on);
  perform bridge.check_classes('never_on', p_asked.never_on);
end
$$;

create or replace function bridge.set_retry(
    task text default null, queue text default null, max_attempts integer default null, backoff jsonb default null,
    retry_on text[] default null, never_on text[] default null, timeout interval default null, soft_timeout interval default null,
    deadline interval default null)
  returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
  -- Make the retry policy of a task or of a queue, or give the one that is there these values; what is null is not said by it. A job's
  -- own word comes first, then its task's policy, then its queue's, then the defaults, rule by rule.
  --
  --   task, queue   whose policy: one of the two
  --   max_attempts … deadline  as in bridge.enqueue
  --
  -- Returns  created, changed or unchanged
  -- Errors   JB001 an argument
  -- Locks    the policy's row: of two callers at once the later one's values stand, all of them
declare
  v_scope constant text := case when set_retry.task is not null then 'task' else 'queue' end;
  v_new bridge.retry_policy;
  v_made boolean;
begin
  if num_nonnulls(set_retry.task, set_retry.queue) <> 1 then
    perform bridge.refuse(case when set_retry.task is null then 'neither task nor queue is given' else 'both task and queue are given' end,
      'give one of them: whose policy it is');
  elsif num_nonnulls(max_attempts, backoff, retry_on, never_on, timeout, soft_timeout, deadline) = 0 then
    perform bridge.refuse(format('the policy of %s %s says nothing', v_scope, coalesce(set_retry.task, set_retry.queue)),
      'give at least one of max_attempts, backoff, retry_on, never_on, timeout, soft_timeout and deadline, or call bridge.remove_retry');
  end if;
  perform bridge.check_job(coalesce(set_retry.task, 'none'), coalesce(nullif(set_retry.queue, 'bridge.calls'), 'none'), '[]', '{}', 0);
  perform bridge.check_options(jsonb_populate_record(bridge.defaults(), jsonb_build_object('max_attempts', max_attempts, 'backoff', backoff,
    'retry_on', retry_on, 'never_on', never_on, 'timeout', timeout, 'soft_timeout', soft_timeout, 'deadline', deadline)), clock_timestamp());
  v_new := row(v_scope, coalesce(set_retry.task, set_retry.queue), max_attempts, backoff, retry_on, never_on, timeout, soft_timeout, deadline,
    clock_timestamp());
  insert into bridge.retry_policy as p select v_new.*
  on conflict on constraint retry_policy_is_of_one_task_or_queue do update set max_attempts = excluded.max_attempts, backoff = excluded.backoff,
    retry_on = excluded.retry_on, never_on = excluded.never_on, timeout = excluded.timeout, soft_timeout = excluded.soft_timeout,
    deadline = excluded.deadline, changed_at = excluded.changed_at
  where (p.max_attempts, p.backoff, p.retry_on, p.never_on, p.timeout, p.soft_timeout, p.deadline) is distinct from
    (excluded.max_attempts, excluded.backoff, excluded.retry_on, excluded.never_on, excluded.timeout, excluded.soft_timeout, excluded.deadline)
  returning p.xmax = 0 into v_made;
  return case when v_made then 'created' when v_made is null then 'unchanged' else 'changed' end;
end
$$;

create or replace function bridge.remove_retry(task text default null, queue text default null) returns boolean language plpgsql
  security definer set search_path = pg_catalog, pg_temp as $$
  -- Remove the retry policy of a task or of a queue.
  --
  --   task, queue  whose policy: one of the two
  --
  -- Returns  false when there was none
  -- Errors   JB001 neither or both are given
begin
  if num_nonnulls(remove_retry.task, remove_retry.queue) <> 1 then
    perform bridge.refuse(case when remove_retry.task is null then 'neither task nor queue is given' else 'both task and queue are given' end,
      'give one of them: whose policy it is');
  end if;
  delete from bridge.retry_policy p where p.scope = case when remove_retry.task is not null then 'task' else 'queue' end
    and p.name = coalesce(remove_retry.task, remove_retry.queue);
  return found;
end
$$;

create or replace function bridge.backoff_delay(p_backoff jsonb, p_failures integer) returns interval language plpgsql volatile
  set search_path = pg_catalog, pg_temp as $$
  -- How long to wait after the p_failures-th failure. Without a policy: 10 s doubling up to an hour, a tenth of it random.
declare
  v_policy constant jsonb := coalesce(p_backoff, '{}');
  v_seconds double precision;
begin
  case jsonb_typeof(v_policy)
    when 'number' then
      v_seconds := v_policy::numeric;
    when 'array' then
      v_seconds := (v_policy->>(least(p_failures, jsonb_array_length(v_policy)) - 1))::numeric;
    else
      v_seconds := least(coalesce((v_policy->>'base')::numeric, 10) * power(coalesce((v_policy->>'factor')::numeric, 2), least(p_failures, 60) - 1),
        coalesce((v_policy->>'cap')::numeric, 3600));
      v_seconds := v_seconds * (1 + coalesce((v_policy->>'jitter')::double precision, 0.1) * (random() - 0.5));
  end case;
  return make_interval(secs => v_seconds);
end
$$;

create or replace function bridge.error_is(p_error json, p_classes text[]) returns boolean language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
  -- Whether an error is of one of these classes, or of a class derived from one. A class is named as its module has it
  -- (requests.exceptions.Timeout) or by its last part alone (Timeout).
  --
  --   p_error  as in bridge.fail; "bases" has the names of its class and of all that it derives from
  --
  -- Returns  null when there are no classes to compare with
declare
  v_name text;
begin
  if p_classes is null then
    return null;
  end if;
  for v_name in
    select p_error->>'type' union all select (p_error->>'module') || '.' || (p_error->>'type')
    union all select json_array_elements_text(case json_typeof(p_error->'bases') when 'array' then p_error->'bases' else '[]' end)
  loop
    if v_name = any (p_classes) or substring(v_name from '[^.]+$') = any (p_classes) then
      return true;
    end if;
  end loop;
  return false;
end
$$;

create or replace function bridge.why_no_retry(p_job bridge.job, p_rules bridge.retry_policy, p_error json, p_final boolean, p_run_at timestamptz)
  returns text language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- Why a failed attempt is followed by no other; null when it is.
  --
  --   p_run_at  when the next one would be due
declare
  v_type constant text := coalesce(p_error->>'type', 'an error without a type');
begin
  return case
    when p_final then 'its error allows no further attempt'
    when p_job.attempts + 1 >= p_rules.max_attempts then 'it was the last attempt'
    when bridge.error_is(p_error, p_rules.never_on) then format('never_on names %s, or a class that it derives from', v_type)
    when not bridge.error_is(p_error, p_rules.retry_on) then format('retry_on does not name %s', v_type)
    when p_run_at >= p_job.deadline then format('the next attempt would be due after the deadline, %s', bridge.moment(p_job.deadline))
  end;
end
$$;

create or replace function bridge.asked_delay(p_error json) returns interval language sql immutable set search_path = pg_catalog, pg_temp
  -- How long an error asks to wait before the next attempt, a day at most; null when it does not.
  return case when json_typeof(p_error->'retry_after') = 'number'
    then make_interval(secs => least(greatest((p_error->>'retry_after')::double precision, 0), 86400)) end;

create or replace function bridge.settle_failure(p_row bridge.inflight, p_error json, p_final boolean, p_outcome jsonb) returns text
  language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- A delivery that has left its place failed: try again as the rules of its job say, or end it. Returns the new status.
declare
  v_job bridge.job;
  v_rules bridge.retry_policy;
  v_run_at timestamptz;
  v_why text;
begin
  if p_row.cancelled_at is not null then
    perform bridge.end_job(p_row.seq, 'cancelled', null, p_error, p_outcome, 1, p_row.started_at, p_row.run, p_row.worker, p_row.progress);
    return 'cancelled';
  elsif p_row.stop_signal is not null then
    return bridge.end_late(p_row, p_outcome);
  end if;
  select j.* into v_job from bridge.job j where j.seq = p_row.seq;
  v_rules := bridge.rules_of(v_job);
  v_run_at := clock_timestamp() + coalesce(bridge.asked_delay(p_error), bridge.backoff_delay(v_rules.backoff, v_job.attempts + 1));
  v_why := bridge.why_no_retry(v_job, v_rules, p_error, p_final, v_run_at);
  if v_rules.max_attempts <> v_job.max_attempts then
    update bridge.job j set max_attempts = v_rules.max_attempts where j.seq = p_row.seq;
  end if;
  if v_why is not null then
    perform bridge.end_job(p_row.seq, 'failed', null, p_error, coalesce(p_outcome, '{}') || jsonb_build_object('reason', v_why), 1, p_row.started_at,
      p_row.run, p_row.worker, p_row.progress);
    return 'failed';
  end if;
  perform bridge.again(p_row, 'failed', p_error, v_run_at);
  return case when v_run_at > clock_timestamp() then 'scheduled' else 'queued' end;
end
$$;

create or replace function bridge.late_error(p_job bridge.job) returns json language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The error of a job whose deadline has passed; its last attempt's, if there is one, in words.
begin
  return json_build_object('type', 'DeadlineExceeded', 'module', 'bridge.errors', 'traceback', null, 'message',
    format('its deadline, %s, has passed', bridge.moment(p_job.deadline)) || case when p_job.error is not null then
      format('; before, %s: %s', p_job.error->>'type', left(p_job.error->>'message', 200)) else '' end);
end
$$;

create or replace function bridge.end_late(p_row bridge.inflight, p_outcome jsonb default null) returns text language plpgsql
  set search_path = pg_catalog, pg_temp as $$
  -- End a job by a run that its deadline has overtaken: it is over, whatever the run says but success. Returns the new status.
declare
  v_job bridge.job;
begin
  select j.* into v_job from bridge.job j where j.seq = p_row.seq;
  perform bridge.end_job(p_row.seq, 'failed', null, bridge.late_error(v_job), coalesce(p_outcome, '{}')
      || jsonb_build_object('reason', 'it ran beyond the deadline and was stopped'),
    1, p_row.started_at, p_row.run, p_row.worker, p_row.progress);
  return 'failed';
end
$$;

create or replace function bridge.end_unstarted_late(p_seq bigint) returns text language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- End a job that has left its place, and whose deadline has passed while it waited: as failed when an attempt of it ran before, else as
  -- expired. Returns that.
declare
  v_job bridge.job;
  v_status text;
begin
  select j.* into v_job from bridge.job j where j.seq = p_seq;
  v_status := case when v_job.attempts + v_job.losses > 0 or exists (select from bridge.attempt a where a.id = v_job.id and a.run is not null)
    then 'failed' else 'expired' end;
  perform bridge.end_job(p_seq, v_status, null, bridge.late_error(v_job), jsonb_build_object('reason', 'the deadline passed while it waited'),
    0, null, null, null, null);
  return v_status;
end
$$;

create or replace function bridge.end_overdue(p_limit integer, p_now timestamptz) returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Act on deadlines that have passed: what waits ends here, what runs is stopped, as by a cancel, and ends when its worker says so.
  --
  -- Returns  how many ended or were told to stop
  -- Index    job_deadline
declare
  v_row record;
  v_worker uuid;
  v_count integer := 0;
begin
  for v_row in
    select j.seq, i.state from bridge.job j left join lateral (select i.* from bridge.inflight i where i.seq = j.seq offset 0) i on true
    where j.deadline <= p_now and (i.seq is null or (i.state = 'published' and i.taken_by is null)
      or (i.state = 'running' and i.stop_signal is null and i.cancelled_at is null))
    order by j.deadline limit p_limit
  loop
    if v_row.state = 'running' then
      continue when bridge.is_in_other_hands(v_row.seq);
      update bridge.inflight i set stop_signal = 'TERM' where i.seq = v_row.seq and i.state = 'running' and i.stop_signal is null
      returning i.worker into v_worker;
      continue when not found;
      perform pg_notify('bridge_stop', v_worker::text);
    else
      continue when not bridge.leave_late(v_row.seq);
      perform bridge.end_unstarted_late(v_row.seq);
    end if;
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;

create or replace function bridge.stamp_deadlines(p_seqs bigint[]) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
  -- Give jobs that are published for the first time the deadline of their policy, counted from when they were due.
begin
  update bridge.job j set deadline = j.run_at + coalesce(
    (select p.deadline from bridge.retry_policy p where p.scope = 'task' and p.name = j.task),
    (select p.deadline from bridge.retry_policy p where p.scope = 'queue' and p.name = j.queue))
  where j.seq = any (p_seqs) and j.deadline is null and exists (select from bridge.retry_policy p
    where p.deadline is not null and ((p.scope = 'task' and p.name = j.task) or (p.scope = 'queue' and p.name = j.queue)));
end
$$;

create or replace function bridge.has_limits(p_task text, p_queue text) returns boolean language sql stable set search_path = pg_catalog, pg_temp
  -- Whether a policy has time limits for jobs of this task or this queue.
  begin atomic
    select exists (select from bridge.retry_policy p
      where ((p.scope = 'task' and p.name = p_task) or (p.scope = 'queue' and p.name = p_queue))
        and (p.timeout is not null or p.soft_timeout is not null));
  end;

create or replace function bridge.delivered_headers(p_job bridge.job) returns json language plpgsql stable set search_path = pg_catalog, pg_temp as $$
  -- The headers of a job with what policies and its deadline say of one attempt: time limits where the job has none of its own, and the
  -- deadline as the moment after which no worker starts it.
declare
  v_rules constant bridge.retry_policy := bridge.rules_of(p_job);
  v_own constant json := p_job.headers->'timelimit';
  v_expires constant timestamptz := least(p_job.expires_at, p_job.deadline);
  v_headers jsonb := p_job.headers;
begin
  if v_rules.timeout is not null or v_rules.soft_timeout is not null then
    v_headers := coalesce(v_headers, '{}') || jsonb_build_object('timelimit', jsonb_build_array(
      coalesce((v_own->>0)::numeric, extract(epoch from v_rules.timeout)), coalesce((v_own->>1)::numeric, extract(epoch from v_rules.soft_timeout))));
  end if;
  if p_job.properties is not null and p_job.deadline is not null and v_expires = p_job.deadline then
    v_headers := v_headers || jsonb_build_object('expires', v_expires);
  end if;
  return v_headers::json;
end
$$;
