"""`raygen up`, `down`, `status` and `dispatch`: what runs in the background for the queue."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from cli import console, options, render
from raygen.plan import Capacity, allot
from raygen.site import Site

Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs for jobs.", show_default="all")]
Cpus = Annotated[int | None, typer.Option(min=1, help="CPU cores for jobs.", show_default="all")]


def up(gpus: Gpus = None, cpus: Cpus = None, storage: options.Storage = None) -> None:
    """Start a Ray head and a dispatcher on this machine, in the background, to stay until `raygen down`."""
    from raygen.cluster.session import local_capacity
    from raygen.spec import Resources

    here = local_capacity()
    allotted = allot(Resources(gpus=gpus, cpus=cpus), here)
    site = Site(storage, create=True)
    site.require_local("raygen up")
    with console.talk().status("starting Ray"):
        site.service.up(site.store, Capacity(*allotted, where=here.where))
    console.show(render.status_table(site.status()))


def down(storage: options.Storage = None) -> None:
    """End what runs in the background on this machine; running jobs go on with the next `raygen up`."""
    site = Site(storage)
    dispatchers, jobs = site.service.down(site.store)
    console.talk().print(f"ended {dispatchers} dispatcher{'s' if dispatchers != 1 else ''} and the Ray head")
    if jobs:
        who = f"{jobs} running jobs go" if jobs > 1 else "the running job goes"
        console.talk().print(f"{who} on from the last checkpoint with the next `raygen up`")


def status(
    storage: options.Storage = None, address: options.Address = None, output: options.OutputOption = "table"
) -> None:
    """Show the cluster, its dispatchers and how many jobs are in which state."""
    found = Site(storage, address).status()
    if output == "json":
        console.show_json(found)
    else:
        console.show(render.status_table(found))


def dispatch(storage: options.Storage = None, address: options.Address = None) -> None:
    """Dispatch jobs in the foreground until Ctrl-C or SIGTERM, which leave running jobs alone."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    site = Site(storage, address, create=True)
    console.talk().print(f"dispatching for {site.place}, queue {site.store.address}; Ctrl-C ends this", soft_wrap=True)
    site.service.dispatch(site.store, background=False)
