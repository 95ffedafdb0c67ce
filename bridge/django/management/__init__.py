"""Nothing but commands."""
