"""Embeds on a Ray cluster: actors that each hold the artifact take shards as they get free."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from anna_export.choices import LOCAL
from anna_export.embed.file import BadShard, Report
from anna_export.encoder import Encoder
from anna_export.errors import DamagedError, ExtraError, InputError
from anna_export.text.prompts import Prompts

# Shards that are on their way to each actor: the next one is there when the last is done.
_SHARDS_AHEAD: Final = 2
_CONNECT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """What an actor's encoder is."""

    dim: int
    compute_label: str


class _Actor:
    """One encoder; opened at its first call, and again where Ray has restarted the actor."""

    def __init__(self, open_encoder: Callable[[], Encoder]) -> None:
        self._open_encoder = open_encoder
        self._encoder: Encoder | None = None

    def info(self) -> EncoderInfo:
        encoder = self._opened()
        return EncoderInfo(encoder.dim, encoder.backend.compute_label)

    def encode(self, texts: list[str], prompt: str | None) -> np.ndarray:
        return self._opened().encode(texts, prompt)

    def _opened(self) -> Encoder:
        if self._encoder is None:
            self._encoder = self._open_encoder()
        return self._encoder


@contextmanager
def connect_ray(
    open_encoder: Callable[[], Encoder],
    prompts: Prompts,
    address: str,
    actors: int | None = None,
    gpus: float = 0,
) -> Iterator["RayEmbedder"]:
    """Connect to a Ray cluster, start actors there, and end both afterwards.

    Args:
        open_encoder: Opens the artifact on a node; it must be picklable, and the folder be there.
        prompts: The artifact's.
        address: The cluster's; LOCAL starts one on this machine.
        actors: How many; None for one a node, or one on this machine.
        gpus: GPUs of each actor; at 0 it computes on CPUs, with its share of its node's cores.

    Raises:
        ExtraError: If Ray is not installed.
        InputError: If the cluster cannot be reached, has no room, or its nodes differ.
        AnnaError: If the artifact cannot be opened on a node.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise ExtraError("expected ray, found none; install anna-export[ray]") from None
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
            f"expected a Ray cluster at {address}, found: {str(error).splitlines()[0]}; start one, "
            f"or let `address` be {LOCAL} for one on this machine"
        ) from None
    try:
        yield RayEmbedder(ray, _start_actors(ray, open_encoder, actors, gpus), prompts)
    finally:
        ray.shutdown()


def _start_actors(
    ray: Any, open_encoder: Callable[[], Encoder], actors: int | None, gpus: float
) -> list[Any]:
    count = actors if actors is not None else sum(node["Alive"] for node in ray.nodes())
    available = ray.cluster_resources()
    if gpus * count > available.get("GPU", 0):
        raise InputError(
            f"expected {gpus * count:g} GPUs for {count} actors, found "
            f"{available.get('GPU', 0):g} in the cluster; ask for fewer"
        )
    cpus = max(1, int(available["CPU"] / count)) if not gpus else 1
    actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)(_Actor)
    return [actor.remote(open_encoder) for _ in range(count)]


class RayEmbedder:
    """Embeds shards with actors on a Ray cluster, which must all compute alike."""

    def __init__(self, ray: Any, actors: list[Any], prompts: Prompts) -> None:
        self._ray, self._actors, self.prompts = ray, actors, prompts
        infos = self._get([actor.info.remote() for actor in actors])
        if len(set(infos)) > 1:
            labels = " and ".join(sorted({info.compute_label for info in infos}))
            raise InputError(f"expected nodes that compute alike, found {labels}; give a `backend`")
        self.dim, self.compute_label = infos[0].dim, infos[0].compute_label

    def encode(
        self, shards: Iterator[tuple[int, list[str]]], prompt: str | None, report: Report
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Give each shard's number and (N, D) vectors as they finish; few shards are in memory.

        Raises:
            BadShard: If a vector is not finite.
        """
        pending: dict[Any, tuple[int, Any]] = {}
        free = [actor for actor in self._actors for _ in range(_SHARDS_AHEAD)]
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

    def _get(self, references: Any) -> Any:
        try:
            return self._ray.get(references)
        except self._ray.exceptions.RayTaskError as error:
            # as the actor raised it
            raise (error.cause or error) from None


def _require_answer(address: str) -> None:
    """Require that the address accepts connections: Ray itself tries for minutes.

    Raises:
        OSError: If it does not.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
