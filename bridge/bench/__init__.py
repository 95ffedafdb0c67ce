"""The benchmark behind ``bridge bench``: plain Celery and us on the same work, side by side in one run."""
