"""The gunicorn worker that answers the two hot calls in its own loop, and gunicorn's hooks.

All requests that the loop does not answer itself go to gunicorn's `gthread` and Flask, unchanged. A client cannot
notice which of the two has answered. The loop never waits for a visitor or for a slow client.
"""
