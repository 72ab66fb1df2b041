"""The two objects that NVIDIA FLARE runs in a job: at every site one that answers for its agent, and at the server the
coordinator. Both are installed with this package; a job names them and brings no code.
"""

from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from nvflare.collab import CollabCallError, collab

from peertune.deploy.home import agreed, home, read_settings
from peertune.deploy.job import OUTCOME, PROGRESS, Outcome
from peertune.deploy.sealing import seal_of
from peertune.engines.flare import FlareEngine
from peertune.engines.post import Line
from peertune.engines.seal import Seal
from peertune.engines.site import Home, Site
from peertune.engines.worker import Refused
from peertune.errors import ConfigError, PeertuneError
from peertune.experiment import Experiment
from peertune.ledger import COORDINATOR
from peertune.runs import new_run

HUB = "server"  # what FLARE calls the coordinator
WIDTH = 200  # characters of an error that are passed on


class Participant:
    """`run`: its name. `wanted`: the hash of its configuration. `sites`: the site of each party."""

    secure = True  # end to end, also past the hub; FLARE's simulator has no certificates

    def __init__(self, run: str, wanted: str, sites: dict[str, str]) -> None:
        self.run, self.wanted, self.sites = run, wanted, sites

    def _kit(self) -> Path:
        return Path(collab.workspace.get_root_dir())

    def _session(self) -> str:
        return f"{self.run}/{collab.fl_ctx.get_job_id()}"

    def _lines(self) -> dict[str, Line]:
        """To every party but this one."""
        proxies = {proxy.name: proxy for proxy in collab.clients}
        others = {party: proxies[site] for party, site in self.sites.items() if site != collab.site_name}
        return {party: partial(_carry, proxy, self.secure) for party, proxy in others.items()}


class FlareSite(Participant):
    """The four questions, as FLARE publishes them. It says who asks, from the certificate of its connection."""

    @collab.init
    def begin(self) -> None:
        parties = {site: party for party, site in self.sites.items()} | {HUB: COORDINATOR}
        self._name = lambda caller: parties.get(caller, "a stranger")
        try:
            site = Site(self._home(), self._session(), self._lines(), self._seal())
        except ConfigError as error:  # the coordinator shall hear of it
            refusal = msgspec.msgpack.encode(Refused(f"{collab.site_name}: {error}", error.exit_code))
            self._reply, self._close = lambda caller, verb, message: refusal, lambda: None
        else:
            self._reply, self._close = site.answer, site.close

    @collab.publish
    def submit(self, message: bytes) -> bytes:
        return self._answer("submit", message)

    @collab.publish
    def get(self, message: bytes) -> bytes:
        return self._answer("get", message)

    @collab.publish
    def drain(self, message: bytes) -> bytes:
        return self._answer("drain", message)

    @collab.publish
    def clear(self, message: bytes) -> bytes:
        return self._answer("clear", message)

    @collab.final
    def end(self) -> None:
        self._close()

    def _seal(self) -> Seal:
        """What this site closes bytes for other agents with, and opens theirs."""
        return seal_of(self._kit(), self._session())

    def _answer(self, verb: str, message: bytes) -> bytes:
        return self._reply(self._name(collab.caller), verb, message)

    def _home(self) -> Home:
        """What the owner of this site has set; nothing that came with the job but a name and a hash."""
        kit = self._kit()
        settings = read_settings(kit)
        return home(settings, new_run(kit / settings.runs, self.run), self.wanted)


class FlareCoordinator(Participant):
    """Runs the experiment, from its last whole round if it has been begun before."""

    @collab.main
    def coordinate(self) -> None:
        context = collab.fl_ctx
        outcome = Path(collab.workspace.get_run_dir(context.get_job_id())) / OUTCOME
        progress: dict[str, Any] = {}
        context.get_engine().register_app_command(PROGRESS, lambda *_: progress)
        try:
            self._run(progress)
        except PeertuneError as error:
            outcome.write_bytes(msgspec.json.encode(Outcome(error.exit_code, str(error))))
            raise RuntimeError(f"the run ended with {type(error).__name__}") from None
        outcome.write_bytes(msgspec.json.encode(Outcome(0, "")))

    def _run(self, progress: dict[str, Any]) -> None:
        kit = self._kit()
        settings = read_settings(kit)
        config, folder = agreed(settings, self.wanted), new_run(kit / settings.runs, self.run)

        def watch(event: str, body: dict[str, Any]) -> None:
            if event in ("begin", "round"):
                progress.update(body, event=event)

        experiment = Experiment.reopen(folder, watch) if folder.exists() else Experiment.create(folder, config, watch)
        lines, session = self._lines(), self._session()
        experiment.start = lambda config, folder, listener: FlareEngine(lines, session, listener=listener)
        experiment.run()


def _carry(proxy: Any, secure: bool, verb: str, message: bytes, seconds: float) -> bytes:
    """Ask a site through FLARE. Raises `TimeoutError` or `ConnectionError`, with FLARE's own first line."""
    try:
        answer = getattr(proxy(timeout=seconds, secure=secure), verb)(message)
    except CollabCallError as error:
        kind = TimeoutError if error.cause_type == TimeoutError.__name__ else ConnectionError
        raise kind((str(error).splitlines() or ["no reason given"])[0][:WIDTH]) from None
    if not isinstance(answer, bytes):
        raise ConnectionError(f"expected bytes, found {type(answer).__name__}")
    return answer
