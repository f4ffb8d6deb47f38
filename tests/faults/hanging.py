"""An engine whose ranks meet in a collective that one of them never enters."""

import time
from datetime import timedelta

import torch
import torch.distributed as dist


class Hanging:
    """One of two ranks."""

    def __init__(self, rank: int, port: int) -> None:
        self.rank = rank
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", address, timedelta(hours=1), world_size=2, rank=rank)

    def meet(self) -> float:
        """The sum over both ranks, if both come."""
        if self.rank == 1:
            sleep_instead_of_meeting()
        total = torch.ones(1)
        dist.all_reduce(total)
        return float(total)


def sleep_instead_of_meeting() -> None:
    """What the stack of rank 1 shows."""
    time.sleep(3600)
