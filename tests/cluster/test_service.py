"""Heads and dispatchers: started, killed, restarted and ended as on people's machines."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time

import psutil
import pytest

from raygen.queue.job import JobState
from tests.cluster.weights import training_writes
from tests.typed_commands import PATIENCE_S, Queue, ray_processes, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def dispatcher(queue: Queue) -> psutil.Process:
    [registered] = [each for each in queue.store.dispatchers() if psutil.pid_exists(each.pid)]
    return psutil.Process(registered.pid)


def kill_head(queue: Queue) -> None:
    """End every process of the head at once, as a power cut would."""
    started = json.loads((queue.head.log.parent / "head.json").read_text())
    head = psutil.Process(started["pid"])
    for process in [*head.children(recursive=True), head]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_job_on_a_bare_machine_needs_nothing_set_up_and_leaves_nothing_behind(own_queue: Queue) -> None:
    before = ray_processes()
    done = own_queue.raygen("train", "ae", "--epochs", "2", "--cpus", "1", "--name", "bare")
    assert done.returncode == 0, done.stderr
    assert own_queue.job("bare").state is JobState.SUCCEEDED
    assert own_queue.head.address is None
    assert own_queue.store.dispatchers() == []
    wait_until(lambda: not {pid for pid in ray_processes() - before if is_of(own_queue, pid)}, "its processes to end")


def is_of(queue: Queue, pid: int) -> bool:
    """Whether a process works in the state folder, as all that a service starts does."""
    try:
        return str(queue.state) in psutil.Process(pid).cwd()
    except psutil.Error:
        return False


def test_a_second_head_on_the_machine_takes_no_jobs_from_the_first(queue: Queue, own_queue: Queue) -> None:
    assert (
        own_queue.raygen("train", "ae", "--epochs", "400", "--cpus", "1", "--name", "newer", "--detach").returncode
        == 0
    )
    own_queue.wait_for("newer", JobState.RUNNING)
    # Its job must find its own head, though the other's is the newest on the machine.
    done = queue.raygen("train", "ae", "--epochs", "2", "--cpus", "1", "--name", "older")
    assert done.returncode == 0, done.stderr
    own_queue.wait_for("newer", JobState.SUCCEEDED)


def test_a_job_that_is_queued_as_soon_as_another_has_ended_is_never_left_alone(own_queue: Queue) -> None:
    """The idle background ends its head for seconds then, and whoever queues a job must not count on it."""
    for number in range(3):
        queued = own_queue.raygen("train", "ae", *f"--epochs 1 --cpus 1 --name job{number} --detach".split())
        assert queued.returncode == 0, queued.stderr
        # By the queue alone: a command would start a dispatcher.
        own_queue.wait_for(f"job{number}", JobState.SUCCEEDED)
        time.sleep(number / 2)
    up = own_queue.raygen("up", "--cpus", "1")
    assert up.returncode == 0, up.stderr
    status = json.loads(own_queue.raygen("status", "-o", "json").stdout)
    assert (status["cpus"], status["unreachable_since"]) == (1, None), "those of this head, not of the one before it"
    assert [each["alive"] for each in status["dispatchers"]] == [True]


def test_ray_and_its_jobs_listen_on_loopback_alone(queue: Queue) -> None:
    options = "--epochs 5000 --workers 2 --name listening --detach"
    assert queue.raygen("train", "gan", *options.split()).returncode == 0
    wait_until(lambda: any(trial.epochs for trial in queue.run("listening").look().trials), "an epoch")
    heard: dict[str, set[str]] = {}
    for process in queue.head_processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM:
                    heard.setdefault(connection.laddr.ip, set()).add(" ".join(process.cmdline()))
    assert heard.keys() <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, heard
    parts = " ".join(part for parts in heard.values() for part in parts)
    for part in ("gcs_server", "raylet", "dashboard.py", "raygen.cluster.driver", "ray::RayTrainWorker"):
        assert part in parts, f"{part} listens at no address, so this test looks at the wrong processes"
    assert queue.raygen("cancel", "listening").returncode == 0
    queue.wait_for("listening", JobState.CANCELLED)


def test_five_jobs_from_five_terminals_run_in_order_and_down_leaves_no_process(own_queue: Queue) -> None:
    before = ray_processes()
    assert own_queue.raygen("up", "--cpus", "1").returncode == 0
    own = {process.pid for process in own_queue.head_processes()}
    assert own
    first = own_queue.raygen("train", "ae", "--epochs", "60", "--name", "first", "--detach")
    assert first.returncode == 0, first.stderr
    for number, priority in enumerate((0, 10, 0, 10), start=2):
        options = f"--epochs 1 --name job{number} --priority {priority} --detach"
        terminal = own_queue.start("train", "ae", *options.split())
        terminal.communicate(timeout=PATIENCE_S)
        assert terminal.returncode == 0
    for number in range(2, 6):
        own_queue.wait_for(f"job{number}", JobState.SUCCEEDED)
    listed = json.loads(own_queue.raygen("ls", "-o", "json").stdout)
    assert {job["state"] for job in listed} == {"succeeded"}
    by_end = [job["job"] for job in sorted(listed, key=lambda job: job["ended_at"])]
    assert by_end == ["first", "job3", "job5", "job2", "job4"], "the higher priority first, then the older"
    assert own_queue.raygen("down").returncode == 0
    assert not {pid for pid in own if psutil.pid_exists(pid)}
    assert not {pid for pid in ray_processes() - before if is_of(own_queue, pid)}
    assert "not running" in own_queue.raygen("status").stdout


def test_a_search_goes_on_when_its_head_was_killed(queue: Queue) -> None:
    options = "--trials 6 --epochs 120 --scheduler fifo --name headless --detach"
    assert queue.raygen("tune", "vae", *options.split()).returncode == 0
    run = queue.run("headless")
    wait_until(lambda: any(record.state == "finished" for record in run.records()), "a finished trial")
    kill_head(queue)
    finished = {record.number for record in run.records() if record.state == "finished"}
    before = training_writes(run, finished)
    assert 0 < len(finished) < 6
    queue.wait_for("headless", JobState.RECOVERING)
    queue.wait_for("headless", JobState.SUCCEEDED)
    assert [record.state for record in run.records()] == ["finished"] * 6
    assert training_writes(run, finished) == before, "finished, and run again"
    job = queue.job("headless")
    assert (job.attempt, job.losses) == (2, 0), "a restarted cluster is not held against the job"


@pytest.mark.cluster
def test_ten_kills_of_the_dispatcher_lose_and_double_nothing(queue: Queue) -> None:
    names = [f"short{number}" for number in range(5)]
    for name in names:
        options = f"--epochs 1 --cpus 1 --name {name} --detach"
        assert queue.raygen("train", "ae", *options.split()).returncode == 0
    for _ in range(10):
        dispatcher(queue).kill()
        listed = queue.raygen("ls", "-o", "json").stdout
        assert {job["job"] for job in json.loads(listed)} >= set(names)
        assert queue.raygen("up", "--cpus", "2").returncode == 0
        time.sleep(1)
    for name in names:
        queue.wait_for(name, JobState.SUCCEEDED)
        job = queue.job(name)
        assert job.attempt == 1, "no attempt was lost, so none may follow"
        states = [event.to_state for event in queue.store.events(job)]
        # A job may have run and ended while no dispatcher looked.
        assert [state for state in states if state is not JobState.RUNNING] == [
            JobState.QUEUED,
            JobState.STARTING,
            JobState.SUCCEEDED,
        ]


@pytest.mark.cluster
def test_a_minute_without_an_answer_from_ray_changes_nothing(queue: Queue) -> None:
    options = "--epochs 1000 --cpus 1 --name patient --detach"
    assert queue.raygen("train", "ae", *options.split()).returncode == 0
    queue.wait_for("patient", JobState.RUNNING)
    assert queue.raygen("train", "ae", "--epochs", "1", "--cpus", "2", "--name", "later", "--detach").returncode == 0
    # Not the agents, nor the raylet that has them in its command line: a node that is silent for a minute is dead.
    paused = queue.head_processes("dashboard/dashboard.py") + queue.head_processes("ray-dashboard-")
    assert paused
    for process in paused:
        process.suspend()
    try:
        wait_until(lambda: "unreachable since" in reason_of(queue, "later"), "the silence to be noticed")
        time.sleep(60)
        assert queue.job("patient").state is JobState.RUNNING
        assert queue.job("later").state is JobState.QUEUED
    finally:
        for process in paused:
            process.resume()
    for name in ("patient", "later"):
        queue.wait_for(name, JobState.SUCCEEDED)
        assert queue.job(name).attempt == 1
    log = (queue.state / "dispatcher.log").read_text()
    told = [line for line in log.splitlines() if "no answer from" in line]
    assert 1 <= len(told) <= 6, "not at each of its looks"
    assert "this machine answers again" in log


def reason_of(queue: Queue, name: str) -> str:
    job = queue.job(name)
    return queue.store.reasons([job]).get(job.id, "")


def test_cancelling_a_training_of_two_processes_frees_its_devices_in_15_seconds(queue: Queue) -> None:
    options = "--epochs 5000 --workers 2 --name pair --detach"
    assert queue.raygen("train", "gan", *options.split()).returncode == 0
    run = queue.run("pair")
    wait_until(lambda: any(len(trial.epochs) >= 2 for trial in run.look().trials), "two epochs")
    asked_at = time.monotonic()
    assert queue.raygen("cancel", "pair").returncode == 0
    assert queue.raygen("wait", "pair", "--for", "cancelled", "--timeout", "15").returncode == 0
    next_one = queue.raygen("train", "ae", "--epochs", "1", "--cpus", "2", "--name", "after-pair", "--detach")
    assert next_one.returncode == 0
    queue.wait_for("after-pair", JobState.STARTING, JobState.RUNNING, JobState.SUCCEEDED)
    assert time.monotonic() - asked_at < 15
    queue.wait_for("after-pair", JobState.SUCCEEDED)
    [trial] = run.look().trials
    assert trial.progress.checkpoint is not None
    assert run.storage.entry(trial.progress.checkpoint) is not None
    assert queue.raygen("show", "pair").returncode == 0


def test_another_clusters_jobs_go_through_its_dashboard_with_its_token(queue: Queue, own_queue: Queue) -> None:
    address = queue.head.address
    assert address is not None
    refused = own_queue.raygen("train", "vae", "--address", address)
    assert refused.returncode == 1
    [line] = refused.stderr.splitlines()
    assert "set RAY_AUTH_MODE=token" in line

    own_queue.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": queue.head.token()}
    refused = own_queue.raygen("tune", "vae", "--address", address, "--gpus", "4")
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    assert f"the cluster at {address} has 0 GPUs and 2 CPU cores" in line
    done = own_queue.raygen("train", "vae", "--address", address, "--epochs", "2", "--name", "guest")
    assert done.returncode == 0, done.stderr
    assert own_queue.run("guest").look().status.state == "finished"
    assert own_queue.store.dispatchers() == [], "the dispatcher that the command started ended with its job"


def test_a_closed_terminal_ends_neither_job_nor_dispatcher(own_queue: Queue) -> None:
    terminal = own_queue.start("train", "ae", "--epochs", "200", "--cpus", "1", "--name", "survivor")
    wait_until(lambda: any(job.name == "survivor" for job in own_queue.store.list()), "the job to be queued")
    own_queue.wait_for("survivor", JobState.RUNNING)
    os.killpg(terminal.pid, signal.SIGHUP)
    terminal.communicate(timeout=PATIENCE_S)
    assert own_queue.wait_for("survivor", JobState.SUCCEEDED).attempt == 1
    wait_until(lambda: own_queue.head.address is None, "the head to end where no job is left")
