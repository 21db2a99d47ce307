"""Nothing that comes from outside is markup, and nothing of it moves the terminal."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from typer.testing import CliRunner, Result

from cli import console
from cli.main import app
from raygen.capacity import Capacity, Node
from raygen.errors import DamagedFilesWarning, RaygenError
from raygen.plan import Plan
from raygen.queue.job import JobState, Request
from raygen.queue.store import Store
from raygen.record.run import Run
from raygen.spec import TrainSpec
from raygen.storage import Storage

CLI = sorted(Path(console.__file__).parent.glob("*.py"))

ADDRESS = "http://127.0.0.1:1"
"""Where nobody answers."""

HOSTILE = {
    "a path like a tag": "/tmp/[exp]/runs",
    "a closing tag": "[/tmp/x]",
    "a colour": "[red]cells[/red]",
    "a link": "[link=https://example.org]x[/link]",
    "a backslash before a bracket": "\\[bold]x",
    "an emoji's name": ":smile: :warning:",
    "an escape sequence": "\x1b[31mred\x1b]0;title\x07",
    "an 8-bit escape": "\x9b31m",
    "a bell, a return, a backspace": "a\x07b\rc\x08d\x7f",
    "lines": "one\ntwo\u2028three",
    "a tab": "a\tb",
    "turned text": "abc\u202etxt.exe\u2066\u200f",
    "nothing to see": "a\u200bb\ufeffc\u00ad",
    "wide": "漢字" * 20,
    "combining": "e\u0301a\u0308",
    "long": "x" * 300,
    "not UTF-8": os.fsdecode(b"caf\xe9-\xff"),
}
SENT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What must not reach a terminal."""

every_name = pytest.mark.parametrize("name", HOSTILE.values(), ids=list(HOSTILE))


def shown(name: str) -> str:
    """A name as it is to be on the screen, written down without the code that is tested."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in name
    )


def flat(text: str) -> str:
    """A screen's text without the breaks that its width makes."""
    return re.sub(r"\s+", "", text)


def assert_shown(result: Result, name: str, *, on: str = "output") -> None:
    """The name is there as it is, and nothing of it did anything."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert flat(shown(name)) in flat(getattr(result, on)), result.output
    assert not SENT.search(result.output.replace("\t", "")), repr(result.output)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def runner(storage: Path) -> CliRunner:
    return CliRunner(env={"RAYGEN_STORAGE": str(storage), "RAYGEN_ADDRESS": "", "RAY_ADDRESS": ""})


STORED = {name: text for name, text in HOSTILE.items() if name != "not UTF-8"}
"""What a database and a document can hold."""


def failed_jobs(storage: Path) -> dict[str, str]:
    """Jobs that failed, one for each such text; why, by their names."""
    place, store = Storage(storage), Store.open(Storage(storage))
    plan = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)
    dispatcher = store.register(ADDRESS, host="here", pid=1)
    store.saw(ADDRESS, Capacity.of_machine(gpus=0, cpus=len(STORED), where="here"))
    reasons = {f"job-{place:02d}": text for place, text in enumerate(STORED.values())}
    for name, text in reasons.items():
        Run.create(place, "train", TrainSpec.create("ae", {}), plan, "min", name=name)
        about = {"kind": "train", "model": "ae", "data": text, "objective": "val_mse", "user": text}
        devices = {"processes": 1, "fewest_processes": 1, "gpus_each": 0, "cpus_each": 1}
        store.submit(Request(name=name, storage=place.url, cluster=ADDRESS, **about, **devices))
        job = store.claim(dispatcher)
        assert job is not None
        store.move(job, JobState.FAILED, reason=text)
    return reasons


def test_the_reasons_of_jobs(runner: CliRunner, storage: Path) -> None:
    reasons = failed_jobs(storage)
    listed = runner.invoke(app, ["ls"])
    printed = {job["job"]: job for job in json.loads(runner.invoke(app, ["ls", "-o", "json"]).stdout)}
    for name, text in reasons.items():
        assert_shown(listed, text)
        for command in ("show", "wait", "watch"):
            assert_shown(runner.invoke(app, [command, name]), text)
        assert (printed[name]["reason"], printed[name]["user"]) == (text, text)
        assert json.loads(runner.invoke(app, ["show", name, "-o", "json"]).stdout)["job"]["reason"] == text


@pytest.mark.parametrize("text", STORED.values(), ids=list(STORED))
def test_what_a_cluster_says(runner: CliRunner, storage: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runner.env, "RAYGEN_ADDRESS", ADDRESS)
    store = Store.open(Storage(storage))
    store.register(ADDRESS, host=text, pid=1)
    nodes = tuple(Node(id=f"id-{place}", name=text, gpus=0, cpus=4) for place in range(2))
    store.saw(ADDRESS, Capacity(nodes=nodes, where="there"))
    assert_shown(runner.invoke(app, ["status"]), text)
    store.lost_sight(ADDRESS, text)
    assert_shown(runner.invoke(app, ["status"]), text)
    assert json.loads(runner.invoke(app, ["status", "-o", "json"]).stdout)["problem"] == text


@every_name
def test_what_a_person_types_is_refused_as_it_is(runner: CliRunner, name: str) -> None:
    for command in (
        ["show", name],
        ["cancel", name],
        ["train", "vae", "--data", name],
        ["train", "vae", "--name", name],
        ["train", name],
        ["tune", "vae", "--space", name],
        ["train", "vae", "--set", name],
        ["logs", "job", "--since", name],
        ["spaces", name],
        ["cluster", "set", "--max", name, "--node", "cpus=4"],
        [name],
    ):
        result = runner.invoke(app, command)
        assert result.exit_code == 2, (command, result.output)
        assert not isinstance(result.exception, Exception), (command, result.exception)
        assert not SENT.search(result.output), (command, result.output)
        assert len(result.stderr.splitlines()) == 1, (command, result.output)


FOLDERS = {name: text for name, text in HOSTILE.items() if len(text) < 200}
"""What a file system takes as a name."""


@pytest.mark.parametrize("name", FOLDERS.values(), ids=list(FOLDERS))
def test_a_storage_of_any_name(runner: CliRunner, tmp_path: Path, name: str) -> None:
    storage = tmp_path / name.replace("/", "")
    storage.mkdir()
    for command in ("ls", "status", "show job", "ls -o json"):
        result = runner.invoke(app, command.split(), env={"RAYGEN_STORAGE": str(storage)})
        is_refused = not storage.name.isprintable()  # and shown in quotes, with escapes of their own
        assert_shown(result, "" if is_refused else "[]" if command.endswith("json") else storage.name)
        assert result.exit_code == (2 if command == "show job" or is_refused else 0)


def test_images_of_any_name(runner: CliRunner, tmp_path: Path) -> None:
    names = [f"{name.replace('/', '')}.png" for name in FOLDERS.values()]
    for place, some in enumerate((names[:8], names[8:])):
        folder = tmp_path / f"[{place}]"
        folder.mkdir()
        for name in some:
            (folder / name).write_bytes(b"no image")
        result = runner.invoke(app, ["train", "ae", "--data", str(folder)])
        assert result.exit_code == 2
        for name in some:
            assert_shown(result, name, on="stderr")


@every_name
def test_every_way_to_print(capsys: pytest.CaptureFixture[str], name: str) -> None:
    table = Table("column", name, title=name, caption=name)
    table.add_row(name, console.text(name, (name, "bold")))
    console.show(name)
    console.show(table)
    console.show_plain(name)
    console.say(name)
    console.say_plain(name)
    console.warn(name)
    console.error(name)
    out, err = capsys.readouterr()
    assert flat(out).count(flat(shown(name))) >= 3
    assert flat(err).count(flat(shown(name))) >= 3
    assert not SENT.search((out + err).replace("\t", ""))


@pytest.mark.parametrize("columns", [20, 60, 200])
@every_name
def test_in_a_terminal_of_any_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, columns: int
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    console.error(name)
    with console.talk().status(name):
        pass
    printed = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|[\r\n]", "", capsys.readouterr().err)
    assert shown(f"raygen: {name}") in printed
    assert not SENT.search(printed)


@given(st.text())
def test_no_text_does_anything(name: str) -> None:
    shown_text = console.text(name).plain
    assert not SENT.search(shown_text)
    assert "\n" not in shown_text
    assert "\t" not in shown_text


def test_logs_keep_tabs_and_lose_colours(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_plain("\x1b[36m(worker)\x1b[0m a\tb [red] \x1b[2J\rdone")
    assert capsys.readouterr().out == "(worker) a\tb [red] \\x1b[2J\\rdone\n"


def test_json_has_only_what_json_has(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_json({"mse": float("nan"), "values": [1.5, float("inf")], "name": HOSTILE["not UTF-8"]})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"mse": None, "values": [1.5, None], "name": HOSTILE["not UTF-8"]}
    assert "NaN" not in printed


def test_a_question_is_text_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    console.confirm("Delete [red]\x1b[2J?")
    assert "Delete [red]\\x1b[2J?" in capsys.readouterr().err


def test_warnings_are_text_too(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn() -> dict[str, str]:
        warnings.warn(DamagedFilesWarning("a [red]\x1b[31m"), stacklevel=1)
        warnings.warn(UserWarning("b \x1b[31m"), stacklevel=1)
        return {}

    monkeypatch.setattr("raygen.models.names", warn)
    with pytest.warns(UserWarning, match=re.escape("b \\x1b[31m")):
        result = runner.invoke(app, ["models"])
    assert result.stderr == "raygen: a [red]\\x1b[31m\n"


def test_errors_are_text_too(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> dict[str, str]:
        raise RaygenError("one [/x] \x1b[31m\ntwo")

    monkeypatch.setattr("raygen.models.names", fail)
    result = runner.invoke(app, ["models"])
    assert (result.exit_code, result.stderr) == (1, "raygen: one [/x] \\x1b[31m\\ntwo\n")


def test_a_log_has_one_line_for_a_message() -> None:
    script = (
        "from raygen.cluster import service_log; import logging; service_log.tell(); "
        "logging.info('%s is away', 'a\\nb\\x1b[31m')"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stderr
    assert printed.endswith(" a\\nb\\x1b[31m is away\n")
    assert printed.count("\n") == 1


def test_an_encoding_that_lacks_letters_is_no_error() -> None:
    script = "from cli import console; console.accept_all(); console.show('– ↑ 漢字'); console.show_plain('漢')"
    printed = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONIOENCODING": "latin-1:strict"},
        capture_output=True,
        check=True,
    )
    assert printed.stdout.splitlines() == [rb"\u2013 \u2191 \u6f22\u5b57", rb"\u6f22"]


ONLY_IN_THE_CONSOLE = re.compile(r"(print|input|\w*\.?Console|Text(\.\w+)?|typer\.(echo|secho|confirm|prompt|style))")
"""Calls that print, ask, or make what Rich takes as it is."""

MARKUP = {"rich.text", "rich.markup", "rich.panel", "rich.prompt", "rich.pretty", "rich.traceback", "rich.markdown"}


@pytest.mark.parametrize("path", [path for path in CLI if path.name != "console.py"], ids=lambda path: path.name)
def test_all_that_is_printed_goes_through_one_file(path: Path) -> None:
    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return  # a type is no way to print
        if isinstance(node, ast.Call):
            assert not ONLY_IN_THE_CONSOLE.fullmatch(ast.unparse(node.func)), ast.unparse(node)
        if isinstance(node, ast.ImportFrom):
            assert node.module not in MARKUP, ast.unparse(node)
            assert not {"Console", "print", "TextColumn"} & {alias.name for alias in node.names}, ast.unparse(node)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))


def test_nothing_below_the_command_line_knows_the_screen() -> None:
    for path in (Path(console.__file__).parents[1] / "raygen").rglob("*.py"):
        names = {
            alias.name if isinstance(node, ast.Import) else str(node.module)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert not {name.partition(".")[0] for name in names} & {"rich", "typer"}, path
