"""Results between Celery's form and a row's: values, errors, and what a result object asks for."""
