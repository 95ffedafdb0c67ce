"""A Django project whose periodic tasks are in the tables of django-celery-beat."""
