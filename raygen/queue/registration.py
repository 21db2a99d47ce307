"""A dispatcher's registration: its lease tells others that it is alive, and is renewed beside whatever it does."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from raygen import processes
from raygen.errors import QueueError
from raygen.queue import store as store_module
from raygen.queue.job import EVERYBODY
from raygen.queue.store import Store

logger = logging.getLogger("raygen.dispatcher")


class Registration:
    """The place of one dispatcher among those of its cluster; `id` is its present one."""

    def __init__(self, store: Store, cluster: str, user: str = EVERYBODY) -> None:
        """Register a dispatcher for the jobs of `user`."""
        self._store = store
        self._cluster, self._user = cluster, user
        self.id = self._take()

    @property
    def holds(self) -> bool:
        """Whether nobody can have taken this dispatcher for dead yet, as far as is known here."""
        return not self._is_lost and time.monotonic() - self._renewed_at < store_module.LEASE_S

    def leave(self) -> None:
        """Give it up."""
        self._store.leave(self.id)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew it if that is due, now and until the block ends; before that begin another one if it was lost."""
        if time.monotonic() - self._renewed_at >= store_module.LEASE_S / 3:
            self._renew()
        if self._is_lost:
            self.id = self._take()
        done = threading.Event()
        beside = threading.Thread(target=self._renew_until, args=(done,), name="lease", daemon=True)
        beside.start()
        try:
            yield
        finally:
            done.set()
            beside.join()

    def _renew_until(self, done: threading.Event) -> None:
        while not done.wait(store_module.LEASE_S / 3):
            try:
                self._renew()
            except QueueError as error:
                logger.warning("the lease cannot be renewed: %s", error)

    def _renew(self) -> None:
        began_at = time.monotonic()  # the database may have taken note of it then already
        if self._store.renew(self.id):
            self._renewed_at = began_at
        else:
            self._is_lost = True

    def _take(self) -> int:
        self._renewed_at = time.monotonic()
        self._is_lost = False
        pid = os.getpid()
        process = processes.identity(pid) or ""
        return self._store.register(
            self._cluster, host=socket.gethostname(), pid=pid, user=self._user, process=process
        )
