"""The shop's settings, with the bridge among its applications."""

from django_shop.settings import *  # noqa: F403
from django_shop.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "bridge.django"]
