"""The worker's side: a fence before each task, its outcome on the row, a heartbeat beside it all."""
