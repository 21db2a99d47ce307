"""`raygen up`, `down`, `status`, `dispatch` and `cluster`: what runs in the background for the queue, and where."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from cli import console, options, render
from raygen.capacity import Capacity, OnDemand
from raygen.errors import SpecError
from raygen.plan import check_totals
from raygen.site import Site

Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs for jobs.", show_default="all")]
Cpus = Annotated[int | None, typer.Option(min=1, help="CPU cores for jobs.", show_default="all")]
Max = Annotated[str, typer.Option("--max", metavar="gpus=N,cpus=N", help="What nodes on demand may come to in all.")]
NodeDevices = Annotated[str, typer.Option("--node", metavar="gpus=N,cpus=N", help="What each of them has.")]


def up(gpus: Gpus = None, cpus: Cpus = None, storage: options.Storage = None) -> None:
    """Start a Ray head and a dispatcher on this machine, in the background, to stay until `raygen down`."""
    from raygen.cluster.session import local_capacity
    from raygen.spec import Resources

    here = local_capacity()
    check_totals(Resources(gpus=gpus, cpus=cpus), here)
    site = Site(storage, create=True)
    site.require_local("raygen up")
    with console.talk().status("starting Ray"):
        gpus, cpus = here.gpus if gpus is None else gpus, here.cpus if cpus is None else cpus
        site.service.up(site.store, Capacity.of_machine(gpus=gpus, cpus=cpus, where=here.where))
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


def set_nodes(most: Max, node: NodeDevices, storage: options.Storage = None, address: options.Address = None) -> None:
    """Declare which nodes the cluster's autoscaler can add, so that jobs are planned for them and ask for them."""
    wanted, each = _amounts("--max", most), _amounts("--node", node)
    if each.get("cpus", 0) < 1:
        raise SpecError(f"--node {node}: name its CPU cores too, such as --node {node},cpus=8")
    numbers = [wanted[kind] // number for kind, number in each.items() if kind in wanted and number]
    if not numbers or min(numbers) < 1:
        raise SpecError(f"--max {most} has no room for a node with {node}; name what all of them have together")
    site = Site(storage, address)
    on_demand = OnDemand(most=min(numbers), gpus=each.get("gpus", 0), cpus=each["cpus"])
    site.declare_on_demand(on_demand)
    console.say(f"{site.place}: {on_demand} may come when jobs wait for them")


def unset_nodes(storage: options.Storage = None, address: options.Address = None) -> None:
    """Plan jobs for the nodes alone that the cluster has."""
    site = Site(storage, address)
    site.declare_on_demand(None)
    console.say(f"{site.place}: no nodes come on demand")


def _amounts(option: str, text: str) -> dict[str, int]:
    """Numbers of devices by kind, from gpus=8,cpus=64; raises SpecError."""
    amounts: dict[str, int] = {}
    for part in text.split(","):
        kind, _, number = part.strip().partition("=")
        if kind not in ("gpus", "cpus") or not number.isdecimal() or kind in amounts:
            raise SpecError(f"{option} {text}: write numbers of devices, such as {option} gpus=8,cpus=64")
        amounts[kind] = int(number)
    return amounts
