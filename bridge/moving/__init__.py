"""What other schedulers have, read as schedules of ours: crontabs, entries of pg_cron; with what cannot be carried over and why."""
