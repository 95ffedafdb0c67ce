-- Remove the media pipeline from this database: its cron entries, settings, uploads and views. Jobs stay in bridge until their day is dropped.

select media.remove_cron_entries();
drop schema media cascade;
