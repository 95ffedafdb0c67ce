"""The app for Django: put ``"bridge.django"`` into INSTALLED_APPS, and run ``migrate``."""
