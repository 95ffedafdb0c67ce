"""Typed functions over the SQL functions: the only place that speaks to Postgres while jobs run."""
