"""The WSGI application: `gunicorn wsgi:app`."""

from visit_counter import create_app

app = create_app()
