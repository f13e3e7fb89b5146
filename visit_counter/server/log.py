"""gunicorn's log, with our modules' records in it: `logger_class = "visit_counter.server.log.Logger"`."""

from __future__ import annotations

import logging
from typing import Any

from gunicorn import glogging

from visit_counter import logs


class _Forward(logging.Handler):
    """Writes a record where gunicorn writes its own."""

    def __init__(self, target: logging.Logger) -> None:
        super().__init__()
        self._target = target

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record on, through the target's filters and handlers."""
        self._target.handle(record)


class Logger(glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's logger, which also throttles a flood of lines and gives our modules' records gunicorn's format."""

    def __init__(self, cfg: Any) -> None:
        self._throttle = logs.Throttle()
        self._once_per_host = logs.OncePerHost()
        super().__init__(cfg)

    def setup(self, cfg: Any) -> None:
        """Do as gunicorn does, at the start and again at each reload."""
        super().setup(cfg)
        self.error_log.addFilter(self._throttle)
        if cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json:
            return  # the administrator's own configuration decides where our records go
        forward = _Forward(self.error_log)
        forward.addFilter(self._once_per_host)
        logs.take_over(forward, self.loglevel)
