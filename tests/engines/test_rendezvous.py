"""The port of the ranks' rendezvous is held from when it is told, so that no other run takes it in between."""

import socket
from pathlib import Path

import pytest

from drgrpo.trainer.rank import TrainerRank
from tests.engines.conftest import make_config

pytestmark = pytest.mark.engine


def test_nobody_else_gets_the_port_that_rank_0_tells(tiny_model: Path) -> None:
    rank = TrainerRank(make_config(tiny_model), str(tiny_model), rank=0, world_size=2, on_gpu=False)
    address, port = rank.address()
    assert address == "127.0.0.1"
    with pytest.raises(OSError, match="in use"), socket.create_server((address, port)):
        pass
    with socket.create_connection((address, port), timeout=5):  # the other ranks may come before rank 0 has started
        pass
