"""An app that only tells when its service is started and stopped, for tests of gunicorn.conf.py."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings

from flask import Flask

from visit_counter.errors import StartupError


class StubService:
    """Says on the terminal what it is asked to do."""

    def start(self) -> None:
        """Say it, or refuse if the test asks for that."""
        if "STUB_FAILS" in os.environ:
            raise StartupError("the journal cannot be opened")
        if "STUB_WARNS" in os.environ:
            logging.getLogger("visit_counter.stub").warning("the host is odd")
            warnings.warn("a library is odd", stacklevel=1)
        sys.stderr.write(f"started in {os.getpid()}\n")

    def stop(self) -> None:
        """Say it, whatever signals come meanwhile: the terminal's and the master's for one Ctrl-C."""
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGQUIT)
        sys.stderr.write(f"stopped in {os.getpid()}\n")


app = Flask("stub")
app.extensions["visit_counter"] = StubService()


@app.get("/health")
def health() -> dict[str, bool]:
    """Answer, so that the test knows that the service is up."""
    return {"healthy": True}
