"""Jobs from Python: queued like those of the command line, and waited for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from raygen.api.loading import find_checkpoint
from raygen.preparation import Prepared, check_data, prepare_search, prepare_training, start_from
from raygen.runs import Run
from raygen.site import Site

if TYPE_CHECKING:
    from raygen.spec import Settings


def train(
    model: str,
    settings: Settings | None = None,
    *,
    autoencoder: str | Path | None = None,
    storage: Path | None = None,
    address: str | None = None,
) -> Run:
    """Train `model` with some fields of its spec set, and wait; raises what the job ended with unless it succeeded.

    A gan's generator begins as the decoder of `autoencoder`, a run's name or whatever else `load` takes, if given.
    """
    site = Site(storage, address)
    prepared = prepare_training(model, settings or {}, site.capacity())
    if autoencoder is not None:
        prepared = start_from(find_checkpoint(autoencoder, storage=storage), prepared)
    return _to_the_end(site, prepared)


def tune(
    model: str,
    settings: Settings | None = None,
    *,
    space: str | None = None,
    vary: Mapping[str, str] | None = None,
    storage: Path | None = None,
    address: str | None = None,
) -> Run:
    """Search over `space` (a name or a TOML file; the model's own unless given), and wait; raises like `train`.

    `vary` makes a space of its own: {"model.latent_dim": "4,8,16", "optimizer.lr": "1e-4..1e-2"}.
    """
    site = Site(storage, address)
    return _to_the_end(site, prepare_search(model, settings or {}, site.capacity(), space=space, vary=vary))


def _to_the_end(site: Site, prepared: Prepared) -> Run:
    check_data(prepared)
    try:
        return site.wait(site.submit(prepared))
    finally:
        site.service.wait_until_ended(site.store)
