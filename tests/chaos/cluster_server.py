"""The fake cluster as a process of its own, which outlives whoever asks it: dispatchers may be killed, or stopped."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from raygen.errors import ClusterUnreachableError
from tests.chaos.chaotic_cluster import ChaoticCluster

PATIENCE_S = 2.0
"""Seconds after which a client takes a cluster for silent."""

SLOW_S = 0.2
"""Seconds that a slow cluster takes for an answer."""

RUBBISH = ("<html><body>502: it does not exist</body></html>", "{}", "null [/bold] \x1b[31m", "")


class Server:
    """Answers to clients as its `mood` lets it."""

    def __init__(self, cluster: ChaoticCluster, seed: int) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)
        self._mood = "well"
        self._one_at_a_time = threading.Lock()

    def serve(self, address: Path) -> None:
        """Answer for ever."""
        with Listener(str(address), backlog=128) as listener:
            while True:
                connection = listener.accept()
                threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection: Connection) -> None:
        with connection:
            try:
                who, method, arguments = connection.recv()
                if who == "client" and (answer := self._disturbed()) is not None:
                    connection.send(answer)
                    return
                connection.send(self._asked(method, arguments))
            except (EOFError, OSError):
                return  # whoever asked was killed

    def _disturbed(self) -> Exception | None:
        """What a client gets in the place of an answer; does not return before its time."""
        while self._mood == "silent":
            time.sleep(0.05)
        if self._mood == "slow":
            time.sleep(SLOW_S)
        if self._mood == "rubbish" and self._random.random() < 0.5:
            return ClusterUnreachableError(f"no answer from the fake cluster ({self._random.choice(RUBBISH)})")
        return None

    def _asked(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if method == "be":
            [self._mood] = arguments
            return None
        with self._one_at_a_time:
            try:
                return getattr(self._cluster, method)(*arguments)
            except ClusterUnreachableError as error:
                return error


class RemoteCluster:
    """The cluster behind a server's address, for a `client`, who may get no answer, or for who makes the chaos."""

    def __init__(self, address: Path, who: str = "client") -> None:
        self._address = str(address)
        self._who = who

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def ask(*arguments: Any) -> Any:
            try:
                with Client(self._address) as connection:
                    connection.send((self._who, method, arguments))
                    if self._who == "client" and not connection.poll(PATIENCE_S):
                        raise ClusterUnreachableError("the fake cluster does not answer")
                    answer = connection.recv()
            except (EOFError, OSError) as error:
                raise ClusterUnreachableError(f"no answer from the fake cluster ({error})") from error
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask


def serve(folder: Path, address: Path, cpus: int, start_s: float, run_s: float, seed: int) -> None:
    """Be a cluster: the main function of its process."""
    cluster = ChaoticCluster(folder, cpus=cpus, start_s=start_s, run_s=run_s)
    Server(cluster, seed).serve(address)
