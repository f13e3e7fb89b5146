"""The configuration that `gunicorn` finds when it is started here: the package's own, for both ways to start it."""

import runpy
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
# gunicorn reads this file before it looks for the app, and from a script in another directory.
sys.path.insert(0, str(_HERE))
# Not an import: gunicorn reads its configuration anew on SIGHUP, and a module is executed once.
globals().update(runpy.run_path(str(_HERE / "visit_counter" / "server" / "gunicorn_conf.py")))
