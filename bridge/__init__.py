"""Keep Celery, make Postgres the truth."""

__version__ = "0.1.0"
