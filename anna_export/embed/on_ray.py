"""Embeds on a Ray cluster: actors that each hold the artifact take shards as they get free."""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from anna_export.choices import LOCAL
from anna_export.embed.file import BadShard, Report
from anna_export.encoder import Encoder
from anna_export.errors import DamagedError, ExtraError, InputError
from anna_export.text.prompts import Prompts

# Shards that are on their way to each actor: the next one is there when the last is done.
_AHEAD: Final = 2
_ANSWER_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class About:
    """What an actor's encoder is."""

    dim: int
    compute_label: str


class _Actor:
    """One encoder; opened when it is first asked, and again where Ray has started it anew."""

    def __init__(self, opening: Callable[[], Encoder]) -> None:
        self._opening = opening
        self._encoder: Encoder | None = None

    def about(self) -> About:
        encoder = self._opened()
        return About(encoder.dim, encoder.backend.compute_label)

    def encode(self, texts: list[str], prompt: str | None) -> np.ndarray:
        return self._opened().encode(texts, prompt)

    def _opened(self) -> Encoder:
        if self._encoder is None:
            self._encoder = self._opening()
        return self._encoder


class Spread:
    """Actors on a cluster.

    Args:
        opening: Opens the artifact on a node; it must be picklable, and the folder be there.
        prompts: The artifact's.
        address: The cluster's; LOCAL starts one on this machine.
        actors: How many; None for one a node, or one on this machine.
        gpus: GPUs of each; 0 for CPUs, which an actor has all of its node's for itself.

    Raises:
        ExtraError: If Ray is not installed.
        InputError: If the cluster cannot be reached, has no room, or its nodes differ.
        AnnaError: If the artifact cannot be opened on a node.
    """

    def __init__(
        self,
        opening: Callable[[], Encoder],
        prompts: Prompts,
        address: str,
        actors: int | None,
        gpus: float,
    ) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            import ray
        except ImportError:
            raise ExtraError(
                "expected ray for --ray, found none; install anna-export[ray]"
            ) from None
        self._ray: Any = ray
        try:
            _require_answer(address)
            ray.init(
                None if address == LOCAL else address,
                include_dashboard=False if address == LOCAL else None,
                log_to_driver=False,
                logging_level="error",
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"expected a Ray cluster at {address}, found: {str(error).splitlines()[0]}; start "
                "one, or give --ray alone for one on this machine"
            ) from None
        nodes = sum(node["Alive"] for node in ray.nodes())
        count = actors if actors is not None else nodes
        available = ray.cluster_resources()
        if gpus * count > available.get("GPU", 0):
            ray.shutdown()
            raise InputError(
                f"expected {gpus * count:g} GPUs for {count} actors, found "
                f"{available.get('GPU', 0):g} in the cluster; ask for fewer"
            )
        cpus = max(1, int(available["CPU"] / count)) if not gpus else 1
        room = {"num_cpus": cpus, "num_gpus": gpus}
        made = ray.remote(**room, max_restarts=-1, max_task_retries=-1)(_Actor)
        self._actors = [made.remote(opening) for _ in range(count)]
        abouts = self._get([actor.about.remote() for actor in self._actors])
        if len(set(abouts)) > 1:
            told = " and ".join(sorted({about.compute_label for about in abouts}))
            raise InputError(f"expected nodes that compute alike, found {told}; give a --backend")
        self.dim, self.compute_label = abouts[0].dim, abouts[0].compute_label
        self.prompts = prompts

    def encode(
        self, shards: Iterator[tuple[int, list[str]]], prompt: str | None, report: Report
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Give each shard's number and (N, D) vectors, as they are done; few are taken early.

        Raises:
            BadShard: If a vector is not finite.
        """
        pending: dict[Any, tuple[int, Any]] = {}
        free = [actor for actor in self._actors for _ in range(_AHEAD)]
        while True:
            while free and (shard := next(shards, None)) is not None:
                number, texts = shard
                actor = free.pop(0)
                pending[actor.encode.remote(texts, prompt)] = number, actor
            if not pending:
                return
            (done,), _ = self._ray.wait(list(pending), num_returns=1)
            number, actor = pending.pop(done)
            free.append(actor)
            try:
                vectors = self._get(done)
            except DamagedError as error:
                raise BadShard(number, error) from None
            yield number, vectors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ray.shutdown()

    def _get(self, found: Any) -> Any:
        try:
            return self._ray.get(found)
        except self._ray.exceptions.RayTaskError as error:
            # ours, as it was raised there
            raise (error.cause or error) from None


def _require_answer(address: str) -> None:
    """Look whether somebody listens: Ray itself tries for minutes.

    Raises:
        OSError: If nobody does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()
