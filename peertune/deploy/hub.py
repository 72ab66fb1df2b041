"""The way of a run's owner to the coordinator's server: submit, follow, stop; and to start again what broke."""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from nvflare.fuel.flare_api import api_spec
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from peertune.deploy.job import OUTCOME, PROGRESS, Outcome
from peertune.deploy.skeleton import ADMIN
from peertune.errors import PeertuneError

POLL = 2.0  # seconds between two looks
SILENT = 120.0  # seconds after which a job that runs and whose coordinator does not answer counts as gone
LOGIN = 20.0  # seconds
TRIES = 5
FINAL = (0, 2)  # exit codes that another try would not change: done, and refused
NOT_RUNNING = "is not running"  # in what FLARE says of a job that it cannot end
ENDED = "FINISHED"  # the beginning of every status of a job that has ended
LOST = (api_spec.NoConnection, api_spec.SessionClosed, api_spec.NoReply, api_spec.AuthenticationError, TimeoutError)
REFUSALS = (
    *LOST,
    *(api_spec.JobNotFound, api_spec.JobNotRunning, api_spec.JobNotDone, api_spec.InvalidJobDefinition),
    *(api_spec.InvalidTarget, api_spec.NoClientsAvailable, api_spec.AuthorizationError, api_spec.InternalError),
    RuntimeError,
)
Place = tuple[str, int]  # arm and round
Found = TypeVar("Found")
Tell = Callable[[str], None]


class Hub:
    """The server, as the owner of the submitter's `kit` sees it. Its calls raise `PeertuneError` if it refuses, or has
    been out of reach for `patience` seconds.
    """

    def __init__(self, kit: Path, patience: float = 120.0) -> None:
        self._kit, self._patience = kit.resolve(), patience
        self._session: Session | None = None
        self._ended: set[str] = set()

    def submit(self, job: Path, run: str) -> str:
        """The id of the job. One whose acknowledgement was lost is found by its run's name, not submitted twice."""

        def once(session: Session) -> str:
            running = self._running(session, run)
            return running[0]["id"] if running else session.submit_job(str(job.resolve()))

        return self._ask(once)

    def running(self, name: str | None = None) -> list[dict[str, str]]:
        """Jobs that have not ended, of that run or of all: id, name and status."""
        return self._ask(lambda session: self._running(session, name))

    def status(self, job: str) -> str:
        return self._ask(lambda session: session.get_job_meta(job)["status"])

    def connected(self) -> set[str]:
        """The sites that the server hears of."""
        return {site.name for site in self._ask(lambda session: session.get_connected_client_list())}

    def progress(self, job: str) -> dict[str, Any] | None:
        """Where the coordinator is; None if it does not answer."""
        try:
            return self._login().do_app_command(job, PROGRESS, {})
        except REFUSALS:
            return None

    def outcome(self, job: str) -> Outcome | None:
        """How the coordinator ended; None if it could not say."""
        with tempfile.TemporaryDirectory() as place:
            found = self._ask(lambda session: session.download_job_result(job, place))
            files = list(Path(found).rglob(OUTCOME))
            try:
                return msgspec.json.decode(files[0].read_bytes(), type=Outcome) if files else None
            except msgspec.DecodeError:  # the coordinator's disk was full
                return None

    def abort(self, job: str) -> None:
        """End it. A server that was killed says RUNNING of its job for ever and has none to end: it counts as ended."""

        def once(session: Session) -> None:
            try:
                session.abort_job(job)
            except api_spec.InternalError as error:
                if NOT_RUNNING not in str(error):
                    raise

        self._ask(once)
        self._ended.add(job)

    def close(self) -> None:
        if self._session:
            self._session.close()
            self._session = None

    def _running(self, session: Session, name: str | None) -> list[dict[str, str]]:
        return [
            {"id": job["job_id"], "name": job["job_name"], "status": job["status"]}
            for job in session.list_jobs()
            if not job["status"].startswith(ENDED) and job["job_id"] not in self._ended
            if name in (None, job["job_name"])
        ]

    def _ask(self, question: Callable[[Session], Found]) -> Found:
        """Log in and ask; again, if the server has been away."""
        end = time.monotonic() + self._patience
        while True:
            try:
                return question(self._login())
            except LOST as error:
                self.close()
                if time.monotonic() > end:
                    raise PeertuneError(
                        f"the coordinator cannot be reached from {self._kit} ({error or type(error).__name__}); "
                        "is `peertune coordinator` running, and is its port open?"
                    ) from None
            except REFUSALS as error:
                raise PeertuneError(f"the coordinator refuses: {error or type(error).__name__}") from None
            time.sleep(POLL)

    def _login(self) -> Session:
        if self._session is None:
            self._session = new_secure_session(ADMIN, str(self._kit), timeout=LOGIN)
        return self._session


def follow(
    hub: Hub, run: str, write: Callable[[], Path], tell: Tell, sites: Mapping[str, str], tries: int = TRIES
) -> Outcome:
    """Submit a run, or find it running, and stay with it until its coordinator has ended by itself. What broke is
    submitted again, and goes on from its last whole round. `sites`: of the parties that it waits for, by party. Raises
    `PeertuneError` when `tries` in a row got no further.
    """
    left, reason = tries, ""
    seen: set[Place] = set()
    running = hub.running(run)
    while left:
        job = running[0]["id"] if running else hub.submit(write(), run)
        tell(f"{run}: job {job}")
        before = len(seen)
        ended = _stay(hub, job, tell, seen, sites)
        outcome = hub.outcome(job) if ended.startswith(ENDED) else None
        if outcome and outcome.exit_code in FINAL:
            return outcome
        reason = outcome.message if outcome else f"the job ended as {ended}"
        left = tries if len(seen) > before else left - 1
        tell(f"{run}: {reason}; {left} more tries" if left else f"{run}: {reason}")
        running = []
        time.sleep(POLL)
    raise PeertuneError(f"{run} was given up after {tries} tries without a round between them; the last: {reason}")


def _stay(hub: Hub, job: str, tell: Tell, seen: set[Place], sites: Mapping[str, str]) -> str:
    """How the job ended; the rounds that it began are added to `seen`. A job that runs and is silent has lost its
    server: it is ended.
    """
    heard, place, missing = time.monotonic(), None, ""
    while not (status := hub.status(job)).startswith(ENDED):
        if status != "RUNNING" and (absent := _absent(hub, sites)) != missing:
            missing = absent
            tell(
                f"waiting for {absent}: not connected; is `peertune join` running there?" if absent else "all are there"
            )
        progress = hub.progress(job) if status == "RUNNING" else {}
        if progress is not None:
            heard = time.monotonic()
        if progress and (now := (progress["arm"], progress["round"])) != place:
            place = now
            seen.add(place)
            tell(f"{place[0]}: round {place[1]}")
        if time.monotonic() - heard > SILENT:
            hub.abort(job)
            return "SILENT"
        time.sleep(POLL)
    return status


def _absent(hub: Hub, sites: Mapping[str, str]) -> str:
    connected = hub.connected()
    return ", ".join(party for party, site in sites.items() if site not in connected)
