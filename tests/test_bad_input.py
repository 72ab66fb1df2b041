"""A user who makes every mistake: each ends in exit code 2 and one message that tells what to do, and nothing is lost.

Through the command, in this process (importing torch costs seconds), on tiny models and data.
"""

import fcntl
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import PeftModel
from safetensors.torch import save_file
from small import PAPER, make_models
from tiny import make_tokenizer
from transformers import AutoModelForCausalLM

from peertune import cli, machine
from peertune.config.schema import VERSION
from peertune.ledger import Ledger
from peertune.lm.quiet import quiet

MAIN = "from peertune.cli import main; main()"
SECRET = "SECRET"  # stands in all private text, and in no message
CONFIG: dict[str, Any] = {
    "rounds": 1,
    "task": {"type": "records", "test": "data/test.jsonl", "transfer": "data/prompts.jsonl"},
    "agents": [
        {"name": "clinic", "model": "models/llama", "data": {"path": "data/clinic.jsonl"}},
        {"name": "lab", "model": "models/gpt2", "data": {"path": "data/lab.jsonl"}},
    ],
    "training": {"batch_size": 4},
    "method": PAPER,
    "budget": {"warm_start_steps": 2, "local_steps": 2, "exchange_steps": 2},
    "evaluation": {"max_new_tokens": 4},
    "engine": {"workers": 0, "device": "cpu"},
}
CODE = CONFIG | {
    "task": {"type": "codelets", "train": 48, "validation": 32, "transfer": 4, "test": 4, "partition": "iid"},
    "agents": [{"model": "models/llama"}, {"model": "models/gpt2"}],
}


class Command:
    """The command in an empty folder beside `models` and `data`; `err` and `out` are of the last call."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self.out = self.err = ""

    def __call__(self, *args: object) -> int:
        self._monkeypatch.setattr(sys, "argv", ["peertune", *map(str, args)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        self.out, self.err = self._capsys.readouterr()
        return code if isinstance(code, int) else 0

    def refuses(self, *args: object) -> str:
        """The one message of a call that must be refused."""
        code = self(*args)
        assert code == 2, (code, self.err)
        assert self.err.startswith("peertune: ") and self.err.count("peertune: ") == 1
        assert "Traceback" not in self.err and SECRET not in self.err
        return self.err.removeprefix("peertune: ").strip()

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == kind]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rows(start: int, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{SECRET} {number}:\n", "completion": f"{number}"} for number in range(start, start + count)]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data, a configuration, and a finished run that was made from them."""
    folder = tmp_path_factory.mktemp("originals")
    make_models(folder / "models")
    for name, start, count in (("clinic", 0, 20), ("lab", 100, 20), ("test", 200, 4), ("prompts", 300, 4)):
        write_rows(folder / "data" / f"{name}.jsonl", rows(start, count))
    (folder / "own.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    (folder / "code.yaml").write_text(yaml.safe_dump(CODE), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["peertune", "run", "own.yaml", "--name", "done"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
    return folder


@pytest.fixture
def peertune(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PEERTUNE_RUNS", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = signal.getsignal(signal.SIGINT)
    yield Command(capsys, monkeypatch)
    signal.signal(signal.SIGINT, before)


def runs_there() -> list[str]:
    return sorted(path.name for path in Path("runs").iterdir())


def unfinished(name: str = "half") -> None:
    """A run that was stopped before its last round: the finished one without its last round's events."""
    shutil.copytree("runs/done", f"runs/{name}")
    with sqlite3.connect(f"runs/{name}/ledger.sqlite") as database:
        database.execute("DELETE FROM events WHERE arm = 'knexa'")
    database.close()


# Models


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "header": lambda content: b"\xff" * 8 + content[8:],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize(
    ("file", "how", "message"),
    [
        ("model.safetensors", "gone", "expected *.safetensors weights in models/llama, found none"),
        ("config.json", "gone", "expected config.json in models/llama, found none"),
        ("model.safetensors", "cut", "expected a causal language model that transformers can read; copy or download"),
        ("model.safetensors", "header", "copy or download it again (SafetensorError"),
        ("model.safetensors", "empty", "copy or download it again"),
        ("config.json", "cut", "copy or download it again"),
        ("tokenizer.json", "cut", "expected a tokenizer (tokenizer.json) in models/llama, found none that can be read"),
        ("tokenizer*", "gone", "expected a tokenizer (tokenizer.json) in models/llama, found none that can be read"),
    ],
)
def test_models_that_are_damaged(peertune: Command, file: str, how: str, message: str) -> None:
    for path in Path("models/llama").glob(file):
        if how == "gone":
            path.unlink()
        else:
            rewrite(path, DAMAGE[how])
    said = peertune.refuses("run", "own.yaml", "--name", "bad")
    assert message in said and "models/llama" in said
    assert runs_there() == ["done"]


def test_models_that_are_missing(peertune: Command) -> None:
    for model, message in (
        ("nowhere", f"[agents.0.model] model 'nowhere': expected a folder .* no such folder in {Path.cwd()}"),
        ("bundled/mamba", "no bundled model 'bundled/mamba'; nearest: "),
    ):
        for verb in ("validate", "run"):
            said = peertune.refuses(verb, "own.yaml", "--set", f"agents.0.model={model}")
            assert all(part in said for part in message.split(" .* "))
    said = peertune.refuses("run", "own.yaml", "--set", "agents.0.model=models/nowhere")
    assert f"there is no such folder in {Path.cwd()}, and the hub did not give it" in said
    assert peertune("validate", "own.yaml", "--set", "agents.0.model=models/nowhere") == 0
    assert "hub will be asked for: models/nowhere" in peertune.out
    assert runs_there() == ["done"]


def test_no_flipped_bit_of_a_header_ends_in_a_traceback(peertune: Command) -> None:
    weights, config = Path("models/llama/model.safetensors"), Path("models/llama/config.json")
    draw, alone = random.Random(0), ("--set", "method=local", "--set", "task.transfer=null")
    for path, size in ((weights, 8 + int.from_bytes(weights.read_bytes()[:8], "little")), (config, 10**9)):
        content = path.read_bytes()
        for _ in range(12):
            changed = bytearray(content)
            changed[draw.randrange(min(size, len(content)))] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            if peertune("run", "own.yaml", "--set", "budget.warm_start_steps=0", *alone):
                assert peertune.err.startswith("peertune: model 'models/llama': ") and "Traceback" not in peertune.err
        path.write_bytes(content)


def test_a_config_of_the_wrong_types(peertune: Command) -> None:
    path = Path("models/llama/config.json")
    content = json.loads(path.read_text())
    for change in ({"hidden_size": "x"}, {"num_attention_heads": 0}, {"hidden_act": "none"}, {"vocab_size": -3}):
        path.write_text(json.dumps(content | change))
        assert "copy or download it again" in peertune.refuses("run", "own.yaml")


def test_a_tokenizer_of_another_model(peertune: Command) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained("models/gpt2")
    said = peertune.refuses("run", "own.yaml")
    assert "token ids up to 321, the model only up to 319. Put the tokenizer that belongs to the model beside" in said


def test_weights_of_another_shape(peertune: Command) -> None:
    import torch

    save_file({"x": torch.zeros(2)}, "models/llama/model.safetensors", metadata={"format": "pt"})
    assert "weights are absent or of another shape" in peertune.refuses("run", "own.yaml")


# Data


GOOD = json.dumps({"prompt": f"{SECRET} p", "completion": f"{SECRET} c"}) + "\n"
NO_FILE = "expected a file, a folder or a hub id 'org/name', found no such file"
CHAT = {"messages": [{"role": "user", "content": SECRET}, {"role": "assistant", "content": SECRET}]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", "", "x.jsonl: expected at least one row with 'prompt' and 'completion'"),
        ("x.jsonl", "\n \n", "found an empty data set"),
        ("x.jsonl", GOOD, "expected at least 2 different prompts, one to train on and one to validate, found 1"),
        ("x.jsonl", GOOD + json.dumps({"prompt": SECRET}), "x.jsonl:2: expected a field 'completion', found 'prompt'"),
        ("x.jsonl", json.dumps({"prompt": SECRET, "completion": 3}), "x.jsonl:1: field 'completion': expected text"),
        ("x.jsonl", json.dumps({"prompt": SECRET, "completion": " "}), "x.jsonl:1: field 'completion': expected text"),
        ("x.jsonl", json.dumps({"question": SECRET, "answer": SECRET}), "found 'question', 'answer'"),
        ("x.jsonl", GOOD * 2 + GOOD[:12], "x.jsonl:3: expected JSON"),
        ("x.jsonl", GOOD * 3 + json.dumps(CHAT), "x.jsonl:4: field 'messages': expected a tokenizer with a chat"),
        ("x.jsonl", f'["{SECRET}"]', "x.jsonl:1: expected an object"),
        ("x.jsonl", "[" * 100_000, "x.jsonl:1: expected JSON, found none that can be read"),
        ("x.jsonl", '{"prompt": "p", "completion": ' + "9" * 5000 + "}", "x.jsonl:1: expected JSON"),
        ("x.json", json.dumps({"prompt": SECRET}), "x.json: expected a JSON list of rows, found an object"),
        ("x.csv", f"prompt,completion\n{SECRET},{SECRET}\n", "expected a .jsonl, .json or .parquet file, found .csv"),
        ("x.parquet", SECRET, "x.parquet: "),
    ],
)
def test_data_that_does_not_fit(peertune: Command, name: str, content: str, message: str) -> None:
    Path(name).write_text(content, encoding="utf-8")
    assert message in peertune.refuses("run", "own.yaml", "--set", f"agents.1.data.path={name}", "--name", "bad")
    assert runs_there() == ["done"]
    assert peertune("validate", "own.yaml") == 0


def test_data_that_is_not_text(peertune: Command) -> None:
    Path("x.jsonl").write_bytes(GOOD.encode("utf-16"))
    assert "expected UTF-8 text, found another byte at offset 0; save it as UTF-8" in peertune.refuses(
        "run", "own.yaml", "--set", "agents.0.data.path=x.jsonl"
    )


def test_everything_that_is_missing_is_found_at_once(peertune: Command) -> None:
    shutil.rmtree("data")
    Path("data/lab.jsonl").mkdir(parents=True)
    for verb in ("validate", "run"):
        lines = peertune.refuses(verb, "own.yaml", "--set", "agents.0.model=nowhere").splitlines()
        assert [line.split("]")[0] for line in lines] == [
            *("[task.test", "[task.transfer", "[agents.0.model", "[agents.0.data.path", "[agents.1.data.path"),
        ]
        assert lines[0].endswith(f"data/test.jsonl: {NO_FILE} in {Path.cwd()}.")
        assert lines[-1].endswith("expected a file, or a folder written by save_to_disk, found another folder.")
    assert runs_there() == ["done"]


def test_public_prompts_that_are_tested(peertune: Command) -> None:
    for verb in ("validate", "run"):
        said = peertune.refuses(verb, "own.yaml", "--set", "task.transfer=data/test.jsonl")
        assert "found 4 of test in transfer; a test would measure memory" in said


def test_examples_longer_than_the_context_are_cut_counted_and_said(peertune: Command) -> None:
    long = [{"prompt": f"{SECRET} word " * 100 + f"{number}", "completion": f"{number}"} for number in range(10)]
    write_rows(Path("data/clinic.jsonl"), long)
    assert peertune("run", "own.yaml", "--name", "long") == 0
    clinic, lab = peertune.events("agents")[0]["agents"]
    assert (clinic["truncated"], lab["truncated"]) == (10, 0)
    assert peertune("show", "long") == 0
    agents = peertune.out.split("Other measures")[0]
    assert "Cut" in agents and "10" in next(line for line in agents.splitlines() if "clinic" in line)


# Training that fails, machines that are too small


def test_a_loss_that_is_not_a_number(peertune: Command) -> None:
    assert peertune("run", "own.yaml", "--name", "nan", "--set", "training.learning_rate=1e30") == 0
    causes = [event["cause"] for event in peertune.events("failure")]
    assert causes and all("Lower learning_rate" in cause and SECRET not in cause for cause in causes)
    assert "Failures" in peertune.out and "The agent was put back" in " ".join(causes)
    ledger = Ledger.read(Path("runs/nan/ledger.sqlite"))
    scores = [event.body["metrics"]["test_loss"] for event in ledger.events("scores")]
    assert [event.arm for event in ledger.events("done")] == ["start", "knexa"]
    ledger.close()
    assert scores[:2] == scores[2:]  # undone: the agents are where they were


def test_too_little_memory(peertune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 1e6)
    said = peertune.refuses("run", "own.yaml", "--name", "big")
    assert "the models need about" in said and "use smaller models, or close other programs" in said
    assert "engine.workers" not in said  # there is one
    assert "in 2 workers" in peertune.refuses("run", "own.yaml", "--set", "engine.workers=2")
    assert "set `engine.workers: 1`" in peertune.err
    assert runs_there() == ["done"]


def test_no_gpu(peertune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = peertune.refuses("run", "own.yaml", "--set", "engine.device=cuda")
    assert "torch sees no CUDA device; use `device: auto` or run `peertune doctor`" in said


def test_no_bubblewrap(peertune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    said = peertune.refuses("run", "code.yaml", "--name", "code")
    assert "bubblewrap is not installed" in said
    assert "apt install bubblewrap" in said and "`sandbox: unsafe`" in said
    assert runs_there() == ["done"]
    assert peertune("run", "code.yaml", "--name", "code", "--set", "sandbox=unsafe") == 0
    assert "Unsafe sandbox" in Path("runs/code/report/report.html").read_text(encoding="utf-8")


def test_an_installation_that_was_interrupted(peertune: Command) -> None:
    code = f"import sys; sys.modules['torch'] = None; {MAIN}"
    command = [sys.executable, "-c", code, "run", "own.yaml", "--name", "new"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(
        "peertune: the installation is not complete (import of torch"
    )
    assert done.stderr.endswith("; install it again: pip install -e . in the checkout\n")
    assert runs_there() == ["done"]


# Runs


NAMES = ("a/b", "../up", "..", ".", "", "/abs", "-dash", ".hidden", "two words", "line\nfeed", "x" * 300, "é" * 40)


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_names_that_no_run_may_have(peertune: Command, name: str) -> None:
    said = peertune.refuses("run", "own.yaml", f"--name={name}")
    assert said.startswith("the name of a run: expected at most 64 letters, digits") and repr(name) in said
    for verb in ("show", "resume"):
        assert f"there is no run {name!r} in runs; `peertune ls`" in peertune.refuses(verb, "--", name)
    assert runs_there() == ["done"] and not Path("up").exists()


def test_a_file_with_a_strange_name_gives_a_run_a_plain_one(peertune: Command) -> None:
    Path("my config (1).yaml").write_text(Path("own.yaml").read_text())
    assert peertune("run", "my config (1).yaml", "--set", "method=local", "--set", "task.transfer=null") == 0
    assert runs_there() == ["done", "my-config-1-1"]


def test_a_name_that_is_taken(peertune: Command) -> None:
    before = (Path("runs/done") / "ledger.sqlite").read_bytes()
    said = peertune.refuses("run", "own.yaml", "--name", "done")
    assert said == "the run 'done' exists; choose another --name, or continue it: peertune resume done"
    assert (Path("runs/done") / "ledger.sqlite").read_bytes() == before


def test_a_run_that_is_being_worked_on(peertune: Command) -> None:
    unfinished()
    with Path("runs/half/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = peertune.refuses("resume", "half")
    assert said == "the run 'half' is being worked on by another process; wait for it or stop it"
    assert peertune("resume", "half") == 0  # nothing was lost
    assert peertune.events("round") == [{"event": "round", "arm": "knexa", "round": 1, "last": True}]
    ours, theirs = (Ledger.read(Path("runs") / name / "ledger.sqlite") for name in ("half", "done"))
    assert ours.head == theirs.head
    ours.close()
    theirs.close()


def test_resuming_a_finished_run(peertune: Command) -> None:
    shutil.rmtree("models")
    assert peertune("resume", "done") == 0
    assert peertune.err == "the run 'done' is finished, there is nothing to resume; these are its results\n"
    assert "Who taught whom" in peertune.out and "report: runs/done/report/report.html" in peertune.out


def test_resuming_without_the_models(peertune: Command) -> None:
    unfinished()
    shutil.move("models", "away")
    assert "and the hub did not give it" in peertune.refuses("resume", "half")
    shutil.move("away", "models")
    assert peertune("resume", "half") == 0


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", lambda old: b"{", "config.json is missing or damaged"),
        ("config.json", lambda old: b"\xff\xfe", "config.json is missing or damaged"),
        ("config.json", lambda old: b"[]", "put it back from a backup, or start a new run"),
        (
            "config.json",
            lambda old: json.dumps(json.loads(old) | {"version": VERSION + 1}).encode(),
            f"has configuration version {VERSION + 1}, this peertune knows up to {VERSION}; upgrade peertune",
        ),
        ("ledger.sqlite", lambda old: old[: len(old) // 2], "restore it from a backup or start a new run"),
        ("ledger.sqlite", lambda old: b"x" * 5000, "restore it from a backup or start a new run"),
        ("ledger.sqlite", lambda old: b"", "ledger.sqlite holds no ledger; restore it from a backup"),
    ],
)
def test_runs_that_are_damaged(peertune: Command, file: str, change: Callable[[bytes], bytes], message: str) -> None:
    unfinished()
    rewrite(Path("runs/half") / file, change)
    assert message in peertune.refuses("resume", "half")
    assert message in peertune.refuses("export", "half", "--agent", "lab", "--to", "out")
    if file == "ledger.sqlite":
        assert message in peertune.refuses("show", "half")
    assert peertune("ls") == 0 and "half" in peertune.out
    assert not Path("out").exists()


def test_a_checkpoint_that_is_gone(peertune: Command) -> None:
    unfinished()
    for path in Path("runs/half/agents/lab/checkpoints").iterdir():
        path.unlink()
    said = peertune.refuses("resume", "half")
    assert "checkpoint" in said and "is missing" in said
    said = peertune.refuses("export", "half", "--agent", "lab", "--arm", "start", "--to", "out")
    assert "put the file back, or export another --arm" in said and not Path("out").exists()


# Export


def test_exports_that_cannot_be(peertune: Command) -> None:
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    unfinished()
    for args, message in (
        (("done", "--agent", "nobody", "--to", "out"), "has no agent 'nobody'; its agents: clinic, lab"),
        (("done", "--agent", "lab", "--arm", "fedavg", "--to", "out"), "no arm 'fedavg'; its arms: start, knexa"),
        (("done", "--agent", "lab", "--to", "full"), "full exists and is not an empty folder; name another one"),
        (("done", "--agent", "lab", "--to", "full/file"), "full/file exists and is not an empty folder"),
        (("done", "--agent", "lab", "--to", "full/file/x"), "full/file/x cannot be written (Not a directory); free"),
        (("half", "--agent", "lab", "--to", "out"), "knexa has no complete round yet; continue with `peertune resume"),
        (("nothing", "--agent", "lab", "--to", "out"), "there is no run 'nothing'"),
    ):
        assert message in peertune.refuses("export", *args)
    assert not Path("out").exists() and [path.name for path in Path("full").iterdir()] == ["file"]


def test_an_export_into_the_folder_one_stands_in(peertune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("empty").mkdir()
    assert peertune("export", "done", "--agent", "lab", "--to", "empty/../empty") == 0
    assert peertune.out.startswith("OK: lab after knexa is in empty/../empty")
    with quiet():
        base = AutoModelForCausalLM.from_pretrained("models/gpt2")
        adapted = PeftModel.from_pretrained(base, "empty")
    assert adapted.peft_config["default"].r == 8
    assert not [path for path in Path().iterdir() if path.name.endswith(".tmp")]


# The terminal


def test_a_terminal_that_knows_ascii_only(originals: Path) -> None:
    command = [sys.executable, "-c", MAIN, "show", "done"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=originals, capture_output=True, env=ascii_only, check=False)
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.isascii()
    assert b"clinic" in done.stdout


def test_an_output_that_is_closed_full_or_left(originals: Path) -> None:
    for redirection, code, message in (
        ("show done >&-", 0, b""),
        ("show done >/dev/full", 2, b"peertune: the output: No space left on device; free space or check the rights\n"),
        ("show done | head -1 >/dev/null; exit ${PIPESTATUS[0]}", 1, b""),
    ):
        line = f"'{sys.executable}' -c '{MAIN}' {redirection}"
        done = subprocess.run(["bash", "-c", line], cwd=originals, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (code, message), redirection


# Disks

SIZES = ("16", "28", "100", "250", "600", "400")  # kB: no room for a ledger, its first event, checkpoints, the report


def test_disks_that_are_full_or_read_only(originals: Path, tmp_path: Path) -> None:
    """Every place that a run writes to: its folder, ledger, checkpoints, report, an export."""
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: that takes root and mount namespaces")
    script = Path(__file__).parent / "full_disk.py"
    command = ["unshare", "-m", sys.executable, str(script), "own.yaml", str(tmp_path), *SIZES]
    done = subprocess.run(command, cwd=originals, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    for one in told:
        first = one.get("first", one)
        assert first["code"] == 2 and first["err"].startswith("peertune: ") and first["err"].count("\n") == 1, one
        assert "Traceback" not in first["err"] and SECRET not in first["err"]
    runs = [one for one in told if one["what"] == "run"]
    heads = {one["head"] for one in runs}
    assert [one["again"]["code"] for one in runs] == [0] * len(runs)
    assert len(heads) == 1 and heads != {""}  # nothing was lost: every run ends as if its disk had never been full
    for word in ("ledger cannot be read or written", "a checkpoint of", "the report cannot be written"):
        assert any(word in one["first"]["err"] for one in runs), word
    assert runs[0]["left"] == runs[1]["left"] == []  # refused before its first event: no folder
    others = [one["err"] for one in told if one["what"] != "run"]
    assert [one["left"] for one in told if one["what"] == "export"] == [False, False]
    assert "the report cannot be written" in others[0] and "cannot be written (No space left" in others[1]
    assert sum("Read-only file system" in said or "readonly" in said for said in others) == 4
