"""A shop as Django's users write one. Nothing in it knows of the bridge, except one line that runs when SHOP_JOINS is set."""

from django_shop.celery import app as celery_app

__all__ = ("celery_app",)
