"""Jobs from Python: queued like those of the command line, and waited for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from raygen.api.loading import find_model
from raygen.preparation import Prepared, check_data, prepare_search, prepare_training, start_from
from raygen.record.run import Run
from raygen.site import Site

if TYPE_CHECKING:
    from raygen.spec import Settings


def train(
    model: str,
    settings: Settings | None = None,
    *,
    autoencoder: str | Path | None = None,
    storage: str | Path | None = None,
    address: str | None = None,
    time_limit_s: float | None = None,
) -> Run:
    """Train `model` with some fields of its spec set, and wait; raises what the job ended with unless it succeeded.

    A gan's generator begins as the decoder of `autoencoder`, a run's name or whatever else `load` takes, if given.
    After running for `time_limit_s`, if given, the job ends with a checkpoint: its last one if the storage is away.
    """
    site = Site(storage, address)
    prepared = prepare_training(model, settings or {}, site.capacity())
    if autoencoder is not None:
        source = find_model(autoencoder, storage=storage)
        # On every machine the same weights, to the bit: the spec keeps their digest.
        prepared = start_from(source.name, source.load("cpu"), prepared)
    return _to_the_end(site, prepared, time_limit_s)


def tune(
    model: str,
    settings: Settings | None = None,
    *,
    space: str | None = None,
    vary: Mapping[str, str] | None = None,
    storage: str | Path | None = None,
    address: str | None = None,
    time_limit_s: float | None = None,
) -> Run:
    """Search over `space` (a name or a TOML file; the model's own unless given), and wait; raises like `train`.

    `vary` makes a space of its own: {"model.latent_dim": "4,8,16", "optimizer.lr": "1e-4..1e-2"}. `time_limit_s` is
    that of `train`.
    """
    site = Site(storage, address)
    prepared = prepare_search(model, settings or {}, site.capacity(), space=space, vary=vary)
    return _to_the_end(site, prepared, time_limit_s)


def _to_the_end(site: Site, prepared: Prepared, time_limit_s: float | None) -> Run:
    check_data(prepared)
    try:
        return site.wait(site.submit(prepared, time_limit_s=time_limit_s))
    finally:
        site.wait_until_ended()
