"""Notes that are read in the background, as users of FastAPI and SQLAlchemy write such a service."""
