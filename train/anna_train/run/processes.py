"""The processes that train together: one, or those that torchrun or accelerate started."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from accelerate import PartialState
from torch import Tensor, distributed


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among its like.

    Args:
        rank: Its number, from 0.
        count: How many there are.
        device: What it computes on.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def share(self, costs: Sequence[int]) -> list[int]:
        """Return the indices of this process's work: the costliest go to whoever has least."""
        loads = [0] * self.count
        mine = []
        for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
            rank = loads.index(min(loads))
            loads[rank] += costs[index]
            if rank == self.rank:
                mine.append(index)
        return sorted(mine)

    def add_up(self, parts: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.count > 1:
            for part in parts:
                distributed.all_reduce(part)

    def smallest(self, number: int) -> int:
        """Return the smallest of all processes' numbers."""
        shared_number = torch.tensor(number, device=self.device)
        if self.count > 1:
            distributed.all_reduce(shared_number, distributed.ReduceOp.MIN)
        return int(shared_number)

    def of_first(self, number: int) -> int:
        """Return the first process's number."""
        shared_number = torch.tensor(number, device=self.device)
        if self.count > 1:
            distributed.broadcast(shared_number, 0)
        return int(shared_number)

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun or accelerate started beside this one, if any."""
    state = PartialState(cpu=not torch.cuda.is_available())
    try:
        yield Processes(state.process_index, state.num_processes, state.device)
    finally:
        state.destroy_process_group()
