-- What earlier releases had and this one has no more, dropped in the transaction that installs the rest. What a process of 0.1.0 calls
-- stays while bridge.serves_from() names that release.

-- It has got the argument expected_duration.
drop function if exists bridge.schedule(text, text, text, jsonb, jsonb, text, text, integer, integer, jsonb, interval, interval, jsonb, interval,
  timestamptz, timestamptz, text, text, interval, boolean);
