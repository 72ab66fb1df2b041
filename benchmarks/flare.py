"""How fast bytes move across organisations: NVIDIA FLARE with mutual TLS, end to end sealed, every party on loopback.

`python benchmarks/flare.py` prints medians: 1 MB from an agent to the coordinator and from an agent to an agent, one
way each, and steps of split learning with 200 KB a message. Targets: 60 ms, 60 ms, 20 steps a second.
"""

import json
import os
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.collab import collab

from peertune.codecs import Codec
from peertune.config.schema import Config
from peertune.deploy import kit as kits
from peertune.deploy.hub import Hub
from peertune.deploy.job import write_job
from peertune.deploy.parts import FlareSite, Participant
from peertune.deploy.provision import provision
from peertune.deploy.start import end_tree, launch
from peertune.engines.flare import FlareEngine
from peertune.engines.resident import Resident
from peertune.engines.site import Home
from peertune.federation import Federation
from peertune.payloads import Activations, Gradient, Payload, Weights

RESULT = "BENCHMARK"  # the environment variable that names the file
NAMES = ("a0", "a1")
MEGABYTE, MESSAGE = 1 << 18, 50 * 1024  # numbers of 4 bytes
TIMES, STEPS = 30, 200
WORDS = ("model", "fingerprint", "adapter", "family", "vocabulary", "data", "isolation")
COUNTS = ("layers", "parameters", "trainable", "train", "validation", "test", "truncated", "chats")
FACTS = {**dict.fromkeys(WORDS, "echo"), **dict.fromkeys(COUNTS, 0), "rank": 1, "scale": 1.0, "histogram": [1.0]}


class Echo:
    """An agent that computes nothing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._weights = Weights({"w": np.ones(MEGABYTE, np.float32)}, 1)
        self._hidden = Activations.of(0, np.ones((256, MESSAGE // 256), np.float32), Codec("fp32"))
        self._gradient = Gradient.of(0, np.ones((256, MESSAGE // 256), np.float32), Codec("fp32"))

    def call(self, verb: str, args: list[Payload]) -> Payload | None:
        answers = {"adapter": self._weights, "split_lower": self._hidden, "split_middle": self._hidden}
        return (answers | dict.fromkeys(("split_loss", "split_middle_back"), self._gradient)).get(verb)

    def may_pull(self, kind: str, caller: str) -> bool:
        return True

    def outgoing(self, payload: Payload) -> tuple[Payload, str]:
        return payload, ""

    def take_metrics(self) -> list[tuple[str, float]]:
        return []

    def log_path(self) -> None:
        return None


def build(raw: bytes, names: list[str]) -> tuple[dict[str, Resident], list[dict[str, Any]]]:
    return {name: Echo(name) for name in names}, [FACTS | {"name": name} for name in names]


class EchoSite(FlareSite):
    def _home(self) -> Home:
        return Home(collab.site_name, "flare:build", b"")


class Timer(Participant):
    """Measures from where the coordinator of a run sits."""

    @collab.main
    def coordinate(self) -> None:
        engine = FlareEngine(self.lines(), self.session())
        fed = Federation(engine, NAMES)
        a0, a1 = (fed[name] for name in NAMES)
        found = {
            "nothing, agent -> coordinator": timed(lambda: fed.fetch(a0.fit(1)), fed),
            "1 MB, agent -> coordinator": timed(lambda: fed.fetch(a0.adapter()), fed),
            "1 MB, coordinator -> agent": timed(lambda: fed.fetch(a0.load(Weights({"w": ONES}, 1))), fed),
            "1 MB, agent -> agent": timed(lambda: fed.fetch(a1.load(a0.adapter())), fed),
        }
        began = time.perf_counter()
        for _ in range(STEPS):
            hidden = a1.split_middle(0, a0.split_lower())
            a0.split_back(a1.split_middle_back(0, a0.split_loss(hidden)))
        fed.end_round()
        steps = STEPS / (time.perf_counter() - began)
        engine.close()
        Path(os.environ[RESULT]).write_text(json.dumps({"milliseconds": found, "steps a second": steps}))


ONES = np.ones(MEGABYTE, np.float32)


def timed(exchange: Callable[[], object], fed: Federation) -> float:
    """Median milliseconds of an exchange, after some that do not count."""
    seconds = []
    for _ in range(TIMES + 3):
        began = time.perf_counter()
        exchange()
        seconds.append(time.perf_counter() - began)
        fed.end_round()
    return 1000 * statistics.median(seconds[3:])


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        result = folder / "result.json"
        os.environ |= {"PYTHONPATH": str(Path(__file__).parent), RESULT: str(result), "OMP_NUM_THREADS": "1"}
        kits.ALLOWED = (*kits.ALLOWED, "flare.")
        agents = [{"name": name, "model": "bundled/gpt2"} for name in NAMES]
        task = {"type": "codelets", "partition": "iid"}
        config = Config.model_validate_json(json.dumps({"task": task, "agents": agents, "method": "local"}))
        made = provision(config, "benchmark", ("localhost", free_port()), folder / "kits")
        running = [launch(kit, folder / f"{name}.log") for name, kit in made.items() if name != "submitter"]
        try:
            hub = Hub(made["submitter"])
            parts = {"site": "flare.EchoSite", "coordinator": "flare.Timer"}
            sites = {name: name for name in NAMES}
            told = {"run": "benchmark", "wanted": "", "sites": sites}
            job = hub.submit(write_job(folder / "jobs", told, **parts), told["run"])
            while not (ended := hub.status(job)).startswith("FINISHED"):
                time.sleep(1)
            hub.close()
            if not result.exists():
                raise SystemExit(f"the job ended as {ended}:\n{(folder / 'coordinator.log').read_text()[-3000:]}")
        finally:
            for process in running:
                end_tree(process.pid)
        show(json.loads(result.read_text()))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def show(found: dict[str, Any]) -> None:
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}, mutual TLS on loopback, sealed end to end")
    for name, value in found["milliseconds"].items():
        print(f"{name:<32} {value:8.1f} ms")
    print(f"{'split learning, 200 KB':<32} {found['steps a second']:8.1f} steps a second")


if __name__ == "__main__":
    main()
