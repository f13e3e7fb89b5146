"""The Lua scripts that servers run: each is a file beside the module that calls it, and is read at import."""

from __future__ import annotations

from importlib import resources


def load_script(package: str, name: str) -> bytes:
    """Return the text of the script `name.lua` in a package. Raises OSError."""
    return resources.files(package).joinpath(f"{name}.lua").read_bytes()
