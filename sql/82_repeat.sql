-- A call that makes jobs and whose answer was lost is made once more by its process. A live job of the same id is left as it is then, but
-- one that has ended by now would give way to a new one, and its work be done again. So a second try asks first what the first one made.

create or replace function bridge.made_within(p_ids uuid[], p_seconds double precision) returns setof uuid language sql stable security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  -- Which of these jobs were made in the last so many seconds: live or ended. It counts back from the server's own clock, because the
  -- caller's may be another.
  begin atomic
    select j.id from bridge.job j where j.id = any (p_ids) and j.created_at >= clock_timestamp() - make_interval(secs => p_seconds)
    union all
    select f.id from bridge.finished f where f.id = any (p_ids) and f.created_at >= clock_timestamp() - make_interval(secs => p_seconds);
  end;
