"""Real certificates and real TLS for tests, in front of a server that may have been built without it."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from tests.support.listener import Listener, carry

if TYPE_CHECKING:
    from pathlib import Path


class Authority:
    """A certificate authority of the test's own, made by the openssl command."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("there is no openssl command to make certificates with")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._openssl("req", "-x509", *self._key("ca"), "-days", "2", "-subj", f"/CN={name}", "-out", "ca.pem")
        self.ca = folder / "ca.pem"

    def certificate(self, name: str, alternative: str) -> tuple[Path, Path]:
        """Return the files of a certificate for `IP:127.0.0.1` or `DNS:name`, and of its key."""
        (self._folder / f"{name}.ext").write_text(f"subjectAltName={alternative}\n", encoding="ascii")
        self._openssl("req", *self._key(name), "-subj", f"/CN={name}", "-out", f"{name}.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext")
        self._openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
        return self._folder / f"{name}.pem", self._folder / f"{name}.key"

    def _key(self, name: str) -> tuple[str, ...]:
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key")

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True)  # noqa: S607 - from the PATH


class TlsFront(Listener):
    """Speaks TLS to clients and passes what they say to a server, as stunnel does."""

    def __init__(self, port: int, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        if client_ca is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(client_ca)
        self._upstream_port = port
        super().__init__()

    def serve(self, client: socket.socket) -> None:
        # An SSLError is an OSError: a client that does not trust us.
        with (
            client,
            suppress(OSError),
            self._context.wrap_socket(client, server_side=True) as secure,
            socket.create_connection(("127.0.0.1", self._upstream_port)) as upstream,
        ):
            Thread(target=carry, args=(upstream, secure), daemon=True).start()
            carry(secure, upstream)
