"""What is said about a shard before the service starts."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.ports import free_port
from tests.support.servers import ValkeyServer
from visit_counter.config.settings import Shard
from visit_counter.errors import StoreRefusedError
from visit_counter.shards import check as connect

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.quick


def test_a_shard_that_answers_is_right(valkey: ValkeyServer) -> None:
    assert connect.check_shard(Shard("one", valkey.url)) is None


def test_a_shard_that_is_down_may_come_back() -> None:
    port = free_port()
    reason = connect.check_shard(Shard("one", f"redis://127.0.0.1:{port}"))
    assert reason
    assert f"127.0.0.1:{port} does not answer" in reason


def test_a_shard_that_is_silent_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "TIMEOUT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        reason = connect.check_shard(Shard("one", f"redis://127.0.0.1:{server.getsockname()[1]}"))
    assert reason
    assert "does not answer" in reason


def test_a_shard_with_another_password_is_wrong(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path, requirepass="right").start()
    try:
        assert connect.check_shard(Shard("one", server.url)) is None
        with pytest.raises(StoreRefusedError, match=rf"^one: 127.0.0.1:{server.port} refuses: ") as caught:
            connect.check_shard(Shard("one", f"redis://:hunter2@127.0.0.1:{server.port}"))
    finally:
        server.kill()
    assert "hunter2" not in str(caught.value)
