"""A fault laboratory: servers and processes under load, faults by chance, and a witness that no fault touches."""
