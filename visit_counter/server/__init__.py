"""The gunicorn worker that answers the two hot calls in its own loop, and gunicorn's hooks.

Whatever the loop does not answer itself goes to gunicorn's `gthread` and Flask, unchanged. A client cannot tell which
of the two has answered. No visitor and no slow client ever keeps the loop waiting.
"""
