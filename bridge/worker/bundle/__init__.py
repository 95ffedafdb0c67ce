"""Bundles at the worker's side: messages that have many small jobs of one task."""
