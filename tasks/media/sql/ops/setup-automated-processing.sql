-- Set up automated processing, or set it up anew: repeating it is safe and keeps the settings.
--
-- Run after `bridge install` and tasks/media/sql/*.sql, as the role that installed them. It makes the extensions where the server has
-- them and this role may, makes the cron entries, and shows what stands. Uncomment the last block to tune at the same time.

do $$
declare
  v_name text;
begin
  foreach v_name in array array['pg_cron', 'http'] loop
    if not exists (select from pg_catalog.pg_available_extensions a where a.name = v_name) then
      raise notice 'extension % is not on this server: the pipeline works without it', v_name;
    else
      begin
        execute format('create extension if not exists %I', v_name);
      exception when others then
        raise notice 'extension % cannot be made here (%): the pipeline works without it', v_name, sqlerrm;
      end;
    end if;
  end loop;
end
$$;

select media.add_cron_entries() as result;

-- select media.set('schedule', '* * * * *');   -- */2 * * * *, */5 * * * *, 0 * * * *, */30 * * * *, or 30 seconds
-- select media.set('iterations', '5');         -- 10, 20
-- select media.set('delay', '1000');           -- 500, 200
-- select media.set('environment', '');         -- staging, production

select 'automated processing is set up' as success, media.capacity() as jobs_an_hour, media.cron_name('process-flashcard-jobs') as jobname,
  s.jobid, s.schedule, s.active
from (values (1)) one
left join media.cron_status() s on s.jobname = media.cron_name('process-flashcard-jobs');
