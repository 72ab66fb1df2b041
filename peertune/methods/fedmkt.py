"""FedMKT: a large model and small ones of other tokenizers teach each other (Fan et al., COLING 2025, 2406.02224).

Each client says what it expects of public problems and what it loses on their answers. The server puts that into its
own vocabulary, takes for each problem the one that loses least, if that is less than it loses itself (DualMinCE), and
learns it beside the answers. Then the clients learn from the server in the same way. Adapters alone are trained; no
private text and no weights travel, but for the averaged adapters of the homogeneous setting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from peertune.errors import MethodError
from peertune.federation import NO_SERVER, SERVER, AgentHandle, Federation, Ref
from peertune.methods.base import Method, State, drawn
from peertune.methods.fedavg import Calls, FedAvg
from peertune.payloads import Alignment, Picks, Tally, Teaching

BITS = {"fp16": 16, "int8": 8}
AVERAGING = "fedit"  # how clients' adapters become one in the homogeneous setting
FROM_SERVER = 0  # the number under which clients hear it; clients are heard by the server from 1 on


@dataclass(frozen=True, slots=True, kw_only=True)
class FedMKT(Method):
    """Mutual knowledge transfer between a server's model and clients' models, of any tokenizers.

    `setting`: heterogeneous; homogeneous, where clients have one model and their adapters are averaged after each round
    (FedAvg); one_to_one, with one client; llm2slm, where the server is not taught. `kd_weight`: of what others expect,
    beside the answers themselves; 0.1 is the paper's lambda of 0.9 on the answers. `temperature` of the softmax.

    `problems`: public problems a round (all by default), drawn anew. `top_k`: tokens of a position that are sent;
    `mass`: no more than have this probability together; `precision` of a number. `mode`: one teacher a problem; all
    that do better than the learner, in proportion to exp(-loss); or all alike (mean). `on_no_teacher`: where nobody
    does better, learn the answer alone, or one's own view beside it. `loss`: kl; uld, of sorted probabilities; gjsd,
    generalised JSD with `beta`. `beside`: what stands beside what others expect, the answers or own data.

    `rule`, `tie`, `merge`: how tokens of another vocabulary become one's own. `optimizer`: keeps what it knows, or is
    fresh in every phase, as in the paper.
    """

    needs_server: ClassVar[bool] = True
    setting: Literal["heterogeneous", "homogeneous", "one_to_one", "llm2slm"] = "heterogeneous"
    kd_weight: Annotated[float, Ge(0), Le(1)] = 0.1
    temperature: Annotated[float, Gt(0), Le(1000)] = 1.0
    problems: Annotated[int, Gt(0)] | None = None
    top_k: Annotated[int, Gt(0)] = 64
    mass: Annotated[float, Gt(0), Le(1)] = 1.0
    precision: Literal["fp16", "int8"] = "fp16"
    mode: Literal["hard", "weighted", "mean"] = "hard"
    on_no_teacher: Literal["skip", "self"] = "skip"
    loss: Literal["kl", "uld", "gjsd"] = "kl"
    beta: Annotated[float, Gt(0), Lt(1)] = 0.5
    rule: Literal["mined", "first_piece", "exact"] = "mined"
    tie: Literal["lex", "id"] = "lex"
    merge: Literal["sum", "first"] = "sum"
    optimizer: Literal["kept", "fresh"] = "kept"
    beside: Literal["answers", "own"] = "answers"

    def check(self, agents: Sequence[Mapping[str, Any]]) -> None:
        if not self.run.transfer:
            raise MethodError("fedmkt needs public problems that all hold, with answers; set `transfer` of the task")
        if self.run.server is None:
            raise MethodError(NO_SERVER)
        if self.setting == "one_to_one" and len(agents) != 1:
            raise MethodError(f"fedmkt one_to_one has one client, found {len(agents)}; use `setting: heterogeneous`")
        if self._averages:
            self._averaging.check(agents)

    @property
    def server_learns(self) -> bool:
        return self.setting != "llm2slm"

    def init(self, fed: Federation) -> State:
        """Whoever is to learn from another gets to know its vocabulary, unless it is the same; once for all rounds."""
        own = {facts["name"]: facts["vocabulary"] for facts in (*self.run.agents, self.run.server or {})}
        calls: dict[str, Ref] = {}
        for agent in fed.everyone:
            if own[agent.name] != own[SERVER]:
                calls[agent.name] = agent.meet(fed.server.spell(), self.alignment)
                if self.server_learns:
                    calls[f"{SERVER}, {agent.name}"] = fed.server.meet(agent.spell(), self.alignment)
        if not fed.gather(calls) and calls:
            raise MethodError("fedmkt: no model can take in the vocabulary of another; the ledger's failures say why")
        return self._averaging.init(fed) if self._averages else {}

    def round(self, state: State, fed: Federation, t: int) -> State:
        which, tallies = drawn(self.run, self.problems, t), {}
        calls = self._hand_out(state, fed)
        for agent in fed.agents:  # steps 1 to 4
            self._phase(agent).fit(self.run.budget.local_steps)
            if self.server_learns:
                fed.server.hear(self._number(agent), which, self._assessed(agent, which), self.alignment)
        if self.server_learns:  # 5 and 6
            tallies[SERVER] = self._phase(fed.server).study(which, self.teaching)
        large = self._assessed(fed.server, which)  # 7
        for agent in fed.agents:  # 8 to 11
            agent.hear(FROM_SERVER, which, large, self.alignment)
            tallies[agent.name] = self._phase(agent).study(which, self.teaching)
        self._record(fed, fed.gather(tallies))
        return self._averaged(state, fed, t, calls)

    def deploy(self, state: State, fed: Federation) -> None:
        if self._averages:
            self._averaging.deploy(state, fed)

    @property
    def _averages(self) -> bool:
        return self.setting == "homogeneous"

    @property
    def _averaging(self) -> FedAvg:
        return FedAvg(self.run, AVERAGING)

    @property
    def alignment(self) -> Alignment:
        return Alignment(self.rule, self.tie, self.merge)

    @property
    def teaching(self) -> Teaching:
        return Teaching(
            kd_weight=self.kd_weight,
            steps=self.run.budget.exchange_steps,
            temperature=self.temperature,
            mode=self.mode,
            on_no_teacher=self.on_no_teacher,
            loss=self.loss,
            beta=self.beta,
            top_k=self.top_k,
            beside=self.beside,
        )

    def _phase(self, party: AgentHandle) -> AgentHandle:
        """Begin a phase of training."""
        if self.optimizer == "fresh":
            party.renew()
        return party

    def _assessed(self, party: AgentHandle, which: Picks) -> Ref:
        return party.assess(which, self.top_k, self.mass, BITS[self.precision])

    def _number(self, agent: AgentHandle) -> int:
        return 1 + [facts["name"] for facts in self.run.agents].index(agent.name)

    def _hand_out(self, state: State, fed: Federation) -> Calls:
        """Clients of one model begin with the average of their adapters."""
        if not self._averages:
            return {}
        return {(agent.name, "load"): self._averaging.hand_out(state, agent) for agent in fed.agents}

    def _averaged(self, state: State, fed: Federation, t: int, calls: Calls) -> State:
        if not self._averages:
            return state
        calls |= {(agent.name, "adapter"): agent.adapter() for agent in fed.agents}
        return self._averaging.average(state, fed, t, calls)

    def _record(self, fed: Federation, tallies: Mapping[str, Tally]) -> None:
        """How many problems each source taught each learner, and how many it was not believed about."""
        names = {FROM_SERVER: SERVER} | {n: facts["name"] for n, facts in enumerate(self.run.agents, start=1)}
        for learner, tally in tallies.items():
            taught, refused = (
                {names[n]: count for n, count in counts.items() if n in names}
                for counts in (tally.taught, tally.refused)
            )
            fed.record("teachers", learner=learner, problems=tally.problems, taught=taught, refused=refused)
