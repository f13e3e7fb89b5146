"""The WSGI application: `gunicorn wsgi:app`, `flask ...`."""

from visit_counter import create_app
from visit_counter.server import startup

# The flask command reads this file too, and would show a traceback for wrong settings.
with startup.errors_in_one_line():
    app = create_app(startup.loaded_settings())
