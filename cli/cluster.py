"""`raygen up`, `down`, `status`, `dispatch` and `cluster`: what runs in the background for the queue, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cli import console, job_tables, options
from raygen import machine
from raygen.capacity import Capacity, OnDemand, count
from raygen.errors import SpecError
from raygen.plan import check_totals
from raygen.queue.job import EVERYBODY
from raygen.queue.places import typed
from raygen.site import Site

Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs for jobs.", show_default="all")]
Cpus = Annotated[int | None, typer.Option(min=1, help="CPU cores for jobs.", show_default="all")]
AllUsers = Annotated[bool, typer.Option("--all-users", help="Start everybody's jobs, not yours alone.")]
Max = Annotated[str, typer.Option("--max", metavar="gpus=N,cpus=N", help="What nodes on demand may come to in all.")]
Check = Annotated[bool, typer.Option("--check", help="End with code 3, and say why, if no job of yours would start.")]
NodeDevices = Annotated[str, typer.Option("--node", metavar="gpus=N,cpus=N", help="What each of them has.")]

UNHEALTHY = 3
"""The exit code of `raygen status --check` if none of the person's jobs would start."""


def up(gpus: Gpus = None, cpus: Cpus = None, all_users: AllUsers = False, storage: options.Storage = None) -> None:
    """Start a Ray head and a dispatcher on this machine, in the background, to stay until `raygen down`."""
    from raygen.cluster.session import local_capacity
    from raygen.spec import Resources

    here = local_capacity()
    check_totals(Resources(gpus=gpus, cpus=cpus), here)
    site = Site(storage, create=True)
    site.require_local("raygen up")
    with console.talk().status("starting Ray"):
        gpus, cpus = here.gpus if gpus is None else gpus, here.cpus if cpus is None else cpus
        site.up(Capacity.of_machine(gpus=gpus, cpus=cpus, where=here.where), all_users=all_users)
    console.show(job_tables.status_table(site.status()))


def down(storage: options.Storage = None) -> None:
    """End what runs in the background on this machine; running jobs go on with the next `raygen up`."""
    site = Site(storage)
    ended = site.down()
    parts = [count(ended.dispatchers, "dispatcher")] if ended.dispatchers else []
    parts += ["the Ray head"] if ended.head else []
    console.say(f"ended {' and '.join(parts)}" if parts else "nothing was running here")
    if ended.jobs:
        who = f"{ended.jobs} running jobs go" if ended.jobs > 1 else "the running job goes"
        console.say(f"{who} on from the last checkpoint with the next `raygen up`")


def status(
    check: Check = False,
    storage: options.Storage = None,
    address: options.Address = None,
    output: options.OutputOption = "table",
) -> None:
    """Show the cluster, its dispatchers and how many jobs are in which state."""
    found = Site(storage, address).status()
    if output == "json":
        console.show_json(found)
    else:
        console.show(job_tables.status_table(found))
    if check and (problem := _problem(found)):
        console.error(problem)
        raise typer.Exit(UNHEALTHY)


def _problem(found: Mapping[str, Any]) -> str:
    """Why none of the person's jobs would start, in one line; nothing if they would."""
    if found["unreachable_since"] is not None:
        return f"{found['cluster']} does not answer: {found['problem']}"
    if not found["address"]:
        return "Ray does not run on this machine; `raygen up` starts it"
    at_work = [each for each in found["dispatchers"] if each["alive"] and each["user"] in (EVERYBODY, machine.user())]
    if not at_work:
        return (
            f"no dispatcher starts your jobs on {found['cluster']}; {typed('raygen dispatch', found['name'])} is one"
        )
    if all(each["away"] for each in at_work):
        return str(at_work[0]["away"])
    if found["held_at"] is not None:
        return f"{found['held_by']} holds the queue of {found['cluster']}"
    return ""


def dispatch(all_users: AllUsers = False, storage: options.Storage = None, address: options.Address = None) -> None:
    """Dispatch your jobs in the foreground until Ctrl-C or SIGTERM, which leave running jobs alone."""
    site = Site(storage, address, create=True)
    console.say(f"dispatching for {site.place}, queue {site.queue_address}; Ctrl-C ends this")
    site.dispatch(all_users=all_users)


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


nodes = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Declare the nodes that a cluster's autoscaler can add."
)
nodes.command("set")(set_nodes)
nodes.command("unset")(unset_nodes)
