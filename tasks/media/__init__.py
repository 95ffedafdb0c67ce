"""Media: an uploaded image, PDF or video becomes a thumbnail, an analysis and a card.

Read in this order: `jobs` (the Celery tasks), `pipeline` (what one file goes through), `decode` (the child process that
opens it), `analysis` and `card`. `sql/` holds the uploads table whose trigger makes the jobs.
"""
