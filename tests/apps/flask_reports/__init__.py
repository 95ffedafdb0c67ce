"""Reports made in the background, as Flask's page on Celery has such an application: a factory, and tasks in its context."""

from __future__ import annotations

import os

from celery import Celery, Task
from flask import Flask


def create_app() -> Flask:
    """The application factory."""
    app = Flask(__name__)
    app.config.from_mapping(
        DATABASE=os.environ["REPORTS_DATABASE_URL"],
        CELERY={
            "broker_url": os.environ["REPORTS_BROKER_URL"],
            "result_backend": os.environ["REPORTS_RESULTS_URL"],
            "task_ignore_result": True,
            "task_acks_late": True,
        },
    )
    celery_init_app(app)

    from flask_reports import database, views

    database.init_app(app)
    app.register_blueprint(views.bp)
    return app


def celery_init_app(app: Flask) -> Celery:
    """A Celery application whose tasks run in the context of the Flask application."""

    class FlaskTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    if os.environ.get("REPORTS_JOINS"):
        import bridge

        bridge.install(celery_app)
    return celery_app
