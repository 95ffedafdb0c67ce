"""Whose transaction a job belongs to: the one that the caller names, the one that is open where he calls, or its own."""
