"""A run: build the agents, loop over rounds, checkpoint, evaluate. The only loop over rounds there is.

The baselines and the method are *arms*: each starts from the same agents after the same warm start. All events of
a round are committed together with its checkpoint, so a run that was stopped at any moment goes on from its last whole
round and ends as if it had never been stopped.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from peertune.arms import make_method, make_run
from peertune.assemble import make_clock, public_examples, start_engine
from peertune.checkpoint import Blobs
from peertune.config.schema import Config, Evaluation, FinalEvaluation, MethodConfig
from peertune.engines.base import Engine, Ref
from peertune.engines.local import Listener
from peertune.engines.worker import Done
from peertune.errors import AgentError, DamagedError, PeertuneError, StorageError
from peertune.federation import Federation
from peertune.identity import check_same, identity
from peertune.ledger import Event, Ledger
from peertune.machine import machine
from peertune.methods import Method
from peertune.methods.base import State
from peertune.payloads import Receipt, Texts
from peertune.runs import LEDGER, create_run, existing_run, free_if_refused, locked, stored_config
from peertune.tasks.base import Example

START = "start"  # the arm of the warm start, which all others begin from

Graded = Literal["scores", "samples", "server_scores"]
Watch = Callable[[str, dict[str, Any]], None]
Preview = Callable[[dict[str, Any], str], None]


class Interrupted(PeertuneError):
    """The user asked to stop; the last round is complete."""

    exit_code = 130


class Experiment:
    """One run in one folder. `watch` is told what happens as it happens, without anybody's text.

    `preview` is shown the first training example of each agent, which is private: it is for the agent's owner. `start`
    starts the engine.
    """

    def __init__(self, folder: Path, config: Config, ledger: Ledger, watch: Watch, new: bool = False) -> None:
        self.folder, self.config, self._ledger, self._watch = folder, config, ledger, watch
        self._blobs = Blobs(folder / "coordinator" / "checkpoints")
        self.again = f"`peertune resume {folder.name}`"  # what to do when it has stopped
        self.preview: Preview = lambda facts, text: None
        self.start: Callable[[Config, Path, Listener], Engine] = start_engine
        self.stopping, self._new = False, new
        self._arm, self._round = START, 0
        self._stored: dict[str, str] = {}  # agents' states that no checkpoint has yet

    @classmethod
    def create(cls, folder: Path, config: Config, watch: Watch) -> "Experiment":
        """A new run. Raises `ConfigError` if the folder is taken, `StorageError` if it cannot be written."""
        return cls(folder, config, create_run(folder, config), watch, new=True)

    @classmethod
    def reopen(cls, folder: Path, watch: Watch) -> "Experiment":
        """A run that was stopped. Raises `ConfigError` if there is none, or if its ledger is damaged."""
        ledger = Ledger.open(existing_run(folder.parent, folder.name) / LEDGER)
        ledger.verify()
        return cls(folder, stored_config(folder), ledger, watch)

    def request_stop(self) -> None:
        """Stop when the current round is complete."""
        self.stopping = True

    def run(self) -> None:
        """Run every arm from where the ledger says it stands. Raises `Interrupted` after a requested stop."""
        kept = free_if_refused(self.folder, self._ledger) if self._new else nullcontext()
        with locked(self.folder), kept, closing(self.start(self.config, self.folder, self._heard)) as engine:
            self._describe(engine)
            server = self.config.server is not None
            federation = Federation(engine, self.config.agent_names(), make_clock(self.config, engine), server)
            if not self._done(START):
                self._warm_start(federation)
            for arm, method in self.config.arms().items():
                if not self._done(arm):
                    self._run_arm(federation, arm, method)

    # The arms.

    def _warm_start(self, fed: Federation) -> None:
        self._enter(START, 0)
        for agent in fed.everyone:
            agent.fit(self.config.budget.warm_start_steps)
        self._close_phase(fed, "init")
        self._complete_round(fed, None, {}, last=True)

    def _run_arm(self, fed: Federation, arm: str, config: MethodConfig) -> None:
        method = make_method(self._run, config)
        self._arm = arm
        state, done = self._restore_arm(fed, arm, method)
        for t in range(done + 1, self.config.rounds + 1):
            if self.stopping:
                raise Interrupted(f"stopped after round {t - 1} of {arm}; continue with {self.again}")
            self._enter(arm, t)
            self._rejoin(fed, t)
            fed.begin_round(t)
            state = method.round(state, fed, t)
            self._close_phase(fed, "round")
            self._complete_round(fed, method, state, last=t == self.config.rounds)

    def _rejoin(self, fed: Federation, t: int) -> None:
        """Who was at work when the last round closed, and has done it by now, tells and stores what it has done."""
        self._bring_back(fed, fed.call_back(t))
        if back := fed.rejoin(t):
            self._close_phase(fed, "round")
            self._stored |= self._store(fed, [name for name in back if name not in fed.busy])

    def _restore_arm(self, fed: Federation, arm: str, method: Method) -> tuple[State, int]:
        """Put all agents back to the arm's last checkpoint, or to the start; the method's state and its round."""
        stored = self._checkpoints(arm)
        before_arm = next(self._ledger.events(arm=arm)).seq - 1 if stored else 0
        while stored:
            event = stored.pop()
            try:
                self._restore(fed, event.body["agents"])
                fed.clock.restore(event.body.get("clock"))
                return load_safetensors(self._blobs.get(event.body["method"])), event.round
            except DamagedError as error:
                self._watch("damaged", {"arm": arm, "round": event.round, "cause": str(error)})
                self._ledger.rewind(stored[-1].seq if stored else before_arm)
        self._restore(fed, self._checkpoints(START)[-1].body["agents"])
        fed.clock.restore(None)
        return method.init(fed), 0

    def _complete_round(self, fed: Federation, method: Method | None, state: State, last: bool) -> None:
        """Deploy and evaluate if it is time, checkpoint everybody, and commit the round: all of it, or nothing.

        Who is still at work has no part in it: its checkpoint is the last that it has.
        """
        if last or self._round % self.config.evaluation.every == 0:
            if method:
                method.deploy(state, fed)
                self._close_phase(fed, "deploy")
            self._evaluate(fed, "scores", self.config.evaluation)
            if fed.has_server and (method is None or method.server_learns):
                self._evaluate(fed, "server_scores", self.config.evaluation)
        if last and self._arm != START and self.config.evaluation.final:
            self._evaluate(fed, "samples", self.config.evaluation.final)
        free = [party.name for party in fed.parties if party.name not in fed.busy]
        agents = {name: self._newest(name) for name in fed.busy} | self._store(fed, free)
        digest = self._blobs.put(save_safetensors({name: np.array(array, order="C") for name, array in state.items()}))
        clock = {"clock": fed.clock.state} if fed.clock.state else {}
        self._append("checkpoint", "checkpoint", {"agents": agents, "method": digest, **clock})
        self._stored = {}
        if last:
            self._append("checkpoint", "done", {})
        self._ledger.commit()
        self._blobs.keep(self._kept("method") | {digest})
        self._watch("round", {"arm": self._arm, "round": self._round, "last": last})

    def _evaluate(self, fed: Federation, kind: Graded, evaluation: Evaluation | FinalEvaluation) -> None:
        parties = [fed.server] if kind == "server_scores" else fed.agents
        graded = fed.gather({a.name: a.grade(evaluation.samples, evaluation.temperature) for a in parties})
        for name, scores in graded.items():
            if (len(scores.correct), scores.samples) != (self._problems[name], evaluation.samples):
                cause = f"{len(scores.correct)} grades of {scores.samples} samples do not fit the test"
                fed.record("failure", agent=name, verb="grade", cause=cause)
                continue
            correct = list(scores.correct)
            fed.record(kind, agent=name, correct=correct, samples=scores.samples, metrics=scores.metrics)
        self._close_phase(fed, "evaluate")

    def _store(self, fed: Federation, names: Sequence[str]) -> dict[str, str]:
        """These parties store their states; a run cannot go on if one of them cannot."""
        keep = Texts(tuple(sorted(self._kept("agents"))))
        refs = {name: fed[name].checkpoint(keep) for name in names}
        digests = {}
        for name, ref in refs.items():
            try:
                receipt = fed.fetch(ref)
            except AgentError as error:
                kind = StorageError if error.code == StorageError.code else PeertuneError
                raise kind(f"{error}; the last complete round is safe, continue with {self.again}") from None
            assert isinstance(receipt, Receipt)
            digests[name] = receipt.digest
        self._close_phase(fed, "checkpoint")
        return digests

    def _restore(self, fed: Federation, digests: Mapping[str, str]) -> None:
        """Raises `DamagedError` if a checkpoint is gone for good, `PeertuneError` if it only cannot be read."""
        errors = []
        for ref in [fed[name].restore(Receipt(digest)) for name, digest in digests.items()]:
            try:
                fed.fetch(ref)
            except AgentError as error:
                errors.append(error)
        lost = fed.end_round().lost  # the rows are no part of any round: a resumed run has them where another has not
        passing = [error for error in errors if error.code != DamagedError.code]
        if passing:
            kind = StorageError if passing[0].code == StorageError.code else PeertuneError
            raise kind(f"{passing[0]}; nothing is lost, try again with {self.again}")
        if errors:
            raise DamagedError(str(errors[0]))
        self._bring_back(fed, lost)

    def _bring_back(self, fed: Federation, names: Sequence[str]) -> None:
        """These agents go on from their last states. In real time a round may begin without one that cannot."""
        for name in names:
            try:
                self._restore(fed, {name: self._newest(name)})
            except PeertuneError as error:
                if isinstance(error, DamagedError | StorageError) or not fed.leave(name):
                    raise

    def _close_phase(self, fed: Federation, phase: str) -> None:
        """The barrier: wait for all agents, write what happened, bring back agents whose process was lost."""
        log = fed.end_round()
        for entry in log.rows:
            self._append(phase, entry.kind, entry.body)
            if entry.kind != "transfer":
                self._watch(entry.kind, {"arm": self._arm, "round": self._round, **entry.body})
        for entry in log.timings:
            self._ledger.fact("call", {"arm": self._arm, "round": self._round, **entry.body})
        if log.lost:
            if self._arm == START:
                raise PeertuneError(f"{', '.join(log.lost)} ended in the warm start; see the failures (out of memory?)")
            self._bring_back(fed, log.lost)

    # What the ledger knows.

    def _append(self, phase: str, kind: Any, body: dict[str, Any]) -> None:
        self._ledger.append(self._arm, self._round, phase, kind, body)

    def _enter(self, arm: str, round: int) -> None:
        self._ledger.discard()
        self._arm, self._round = arm, round
        self._watch("begin", {"arm": arm, "round": round, "rounds": self.config.rounds})

    def _done(self, arm: str) -> bool:
        return any(self._ledger.events("done", arm))

    def _checkpoints(self, arm: str) -> list[Event]:
        return list(self._ledger.events("checkpoint", arm))

    def _newest(self, name: str) -> str:
        """The last state that the agent has stored."""
        last = (self._checkpoints(self._arm) or self._checkpoints(START))[-1]
        return self._stored.get(name) or last.body["agents"][name]

    def _kept(self, what: str) -> set[str]:
        """Digests that must stay: the start, the end of every finished arm, the last two rounds of this arm."""
        kept: set[str] = set()
        for arm in (START, *self.config.arms()):
            events = self._checkpoints(arm)
            for event in events[-2:] if arm == self._arm else events[-1:]:
                named = event.body[what]
                kept |= {named} if isinstance(named, str) else set(named.values())
        return kept

    def _describe(self, engine: Engine) -> None:
        """Write the run's first event, or check that a resumed run still is what it was."""
        order = list(self.config.parties())
        facts = sorted(engine.facts, key=lambda facts: order.index(facts["name"]))
        previews = {each["name"]: each.pop("preview", "") for each in facts}
        isolation = sorted({each.pop("isolation", "") for each in facts} - {""})
        server = facts.pop() if self.config.server else None
        self._run = make_run(self.config, self._public, facts, server)
        for config in self.config.arms().values():
            make_method(self._run, config).check(facts)
        self._problems = {name: facts[0]["test"] for name in order}
        self._watch("agents", {"agents": facts})
        for each in facts:
            self.preview(each, previews[each["name"]])
        prompts = [example.prompt for split in self._public for example in split]
        body = identity(self.config, facts, server, prompts)
        if recorded := next(self._ledger.events("run"), None):
            check_same(self.folder.name, recorded.body, body)
        else:
            self._append("init", "run", body)
        session = {"machine": machine(), "engine": self.config.engine.model_dump(), "sandbox": ", ".join(isolation)}
        self._ledger.fact("session", session | {"pid": os.getpid()})
        self._ledger.commit()

    # The parts.

    @cached_property
    def _public(self) -> tuple[list[Example], list[Example]]:
        return public_examples(self.config)

    def _heard(self, ref: Ref, done: Done) -> None:
        body = {"arm": self._arm, "round": self._round, "agent": ref.owner, "verb": ref.verb}
        self._watch("call", {**body, "seconds": done.seconds[0], "failed": done.failure is not None})
