-- Manage automated processing. Run the statements one by one; those that change something are commented out.

-- Status
select * from media.cron_status();
select jobname, schedule, active from media.cron_status() where jobname = media.cron_name('process-flashcard-jobs');
select * from media.diagnose();

-- Last 10 runs
select runid, status, return_message, start_time, end_time from media.cron_runs(10);

-- Error messages of failing runs
select * from media.cron_failures order by runid desc limit 10;
select * from media.job_failures order by failed_at desc limit 10;

-- Statistics of the last hour, and the rate by minute
select * from media.job_stats_hourly;
select * from media.job_rate_per_minute order by minute desc;
select media.capacity() as jobs_an_hour;

-- What the workers did last
select * from media.worker_pull order by started_at desc limit 20;

-- Pause, resume
-- select media.pause();
-- select media.resume();

-- Change the schedule or the rate
-- select media.set_schedule('*/2 * * * *');
-- select media.set('iterations', '20');
-- select media.set('delay', '200');

-- Let waiting jobs start now (the same as a tick); all of them: iterations 0 and delay 0
-- select media.cron_tick();

-- Retry what failed
-- select bridge.retry_failed(task => 'media.process');

-- Monthly: clean pg_cron's log and drop old history
-- select media.clean_cron_log(interval '30 days');
-- select bridge.cleanup();

-- Delete and recreate the cron entries
-- select media.remove_cron_entries();
-- select media.add_cron_entries();
