"""What NVIDIA FLARE runs at every site, and what it has in common with the coordinator. A job names these classes and
brings no code. Nothing here loads a model: the agent has a process of its own.
"""

from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from nvflare.collab import CollabCallError, collab

from peertune.deploy.home import home, read_settings
from peertune.deploy.job import HUB, check_versions
from peertune.deploy.places import places_of, without_places
from peertune.deploy.sealing import seal_of
from peertune.engines.post import Line
from peertune.engines.seal import Seal
from peertune.engines.site import Home, Site
from peertune.engines.worker import refused
from peertune.ledger import COORDINATOR
from peertune.runs import new_run

WIDTH = 200  # characters of an error that are passed on


class Participant:
    """`run`: its name. `wanted`: the hash of its configuration. `sites`: the site of each party. `versions`: of the
    packages that whoever started the run has.
    """

    secure = True  # end to end, also past the hub; FLARE's simulator has no certificates

    def __init__(self, run: str, wanted: str, sites: dict[str, str], versions: dict[str, str]) -> None:
        self.run, self.wanted, self.sites, self.versions = run, wanted, sites, versions

    def kit(self) -> Path:
        return Path(collab.workspace.get_root_dir())

    def session(self) -> str:
        return f"{self.run}/{collab.fl_ctx.get_job_id()}"

    def lines(self) -> dict[str, Line]:
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
        self._places = {str(self.kit()): "KIT"}
        try:
            check_versions(self.versions)
            site = Site(self._home(), self.session(), self.lines(), self._seal())
        except Exception as error:  # the coordinator shall hear of it
            refusal = msgspec.msgpack.encode(refused("the start", error))
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
        return seal_of(self.kit(), self.session())

    def _answer(self, verb: str, message: bytes) -> bytes:
        return without_places(self._reply(self._name(collab.caller), verb, message), self._places)

    def _home(self) -> Home:
        """What the owner of this site has set; nothing that came with the job but a name and a hash."""
        kit = self.kit()
        settings = read_settings(kit)
        self._places = places_of(kit, settings)
        return home(settings, new_run(kit / settings.runs, self.run), self.wanted)


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
