"""The service of one process: its parts, its background jobs, its health.

Nothing is opened before the process that serves has been forked. A job that fails is reported and runs again at its
next turn. What `/health` says is what happened, not what should have happened.
"""
