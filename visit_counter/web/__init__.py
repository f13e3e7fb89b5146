"""The routes: one blueprint a file. Here data becomes HTTP, and nowhere else but in the worker's hot path.

Every error is an `application/problem+json` document; none is HTML or a traceback. A route asks the service, and
decides nothing about counts.
"""
