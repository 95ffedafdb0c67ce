"""A small Django project with ``bridge.django`` in it."""
