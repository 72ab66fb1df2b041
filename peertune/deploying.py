"""The commands of a run across organisations: to set a federation up and change it, to take part, to run."""

import tempfile
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peertune.errors import ConfigError, PeertuneError
from peertune.options import Source

if TYPE_CHECKING:
    from peertune.config.schema import Config
    from peertune.deploy.documents import Request
    from peertune.deploy.organiser import Organiser
    from peertune.doctor import Check

Kit = Annotated[Path, typer.Argument(help="A start-up kit: the folder of one party.")]
On = Annotated[Path, typer.Option("--on", metavar="KIT", help="The submitter's kit.")]
OptionalOn = Annotated[
    Path | None, typer.Option("--on", metavar="KIT", help="Submit it from the submitter's kit, and follow it.")
]
KITS = Path("kits")
Kits = Annotated[Path, typer.Option(help="The organiser's folder.")]
Changed = Annotated[list[str], typer.Option(metavar="PARTY", help="This party has made new keys; repeatable.")]
Deploy = Annotated[Path | None, typer.Option("--deploy", metavar="KIT", help="Check this kit and its way.")]
Hybrid = Annotated[bool, typer.Option("--hybrid", help="Keys to seal with that have ML-KEM beside X25519.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def provision(
    file: Source,
    host: Annotated[str, typer.Option(help="The coordinator's host, as all sites will know it.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its one open port.")] = 443,
    to: Annotated[Path, typer.Option(help="The organiser's folder, which is made.")] = KITS,
    project: Annotated[str, typer.Option(help="The name of the federation.")] = "peertune",
    central: Annotated[bool, typer.Option("--central", help="Make everybody's keys and kits here: for tests.")] = False,
) -> None:
    """Found a federation: an authority, the kits of coordinator and submitter, and an invitation for every site."""
    _check_installed()
    from peertune.config import read_config, resolve_recipe
    from peertune.deploy import provision as centrally
    from peertune.deploy.documents import project_of
    from peertune.deploy.organiser import Organiser

    config = read_config(resolve_recipe(file))
    if central:
        for owner, kit in centrally.provision(config, project, (host, port), to).items():
            typer.echo(f"{owner:<16} {kit}")
    else:
        _tell_invitations(Organiser.found(to, config, project_of(project, host, port)))


def reconfigure(file: Source, kits: Kits = KITS) -> None:
    """Give a federation another configuration. Who is new in FILE is invited; who is not in it any more is removed."""
    _check_installed()
    from peertune.config import read_config, resolve_recipe
    from peertune.deploy.organiser import Organiser

    organiser = Organiser.open(kits)
    organiser.configure(read_config(resolve_recipe(file)))
    _tell_invitations(organiser)
    _tell_list(organiser.list)


def request(
    invitation: Annotated[Path, typer.Argument(help="The invitation that the organiser sent.")],
    to: Annotated[Path | None, typer.Option(help="The kit to make; a folder of the party's name by default.")] = None,
    hybrid: Hybrid = False,
) -> None:
    """Make this site's keys and kit, and its request to the organiser. The private keys stay in the kit."""
    _check_installed()
    from peertune.deploy.documents import Invitation, read_document
    from peertune.deploy.request import begin

    invited = read_document(invitation, Invitation)
    kit = to or Path(invited.party)
    _tell_request(kit, begin(invited, kit, hybrid))


def renew(
    kit: Kit,
    keys: Annotated[bool, typer.Option("--keys", help="Make new keys too; the old ones serve until `accept`.")] = False,
    hybrid: Hybrid = False,
) -> None:
    """Ask the organiser for a new certificate, for the keys that a kit has, or for new ones."""
    _check_installed()
    from peertune.deploy.request import ask

    _tell_request(kit, ask(kit, keys, hybrid))


def approve(
    requests: Annotated[list[Path], typer.Argument(help="Requests that sites sent.")],
    kits: Kits = KITS,
    changed: Changed = [],  # noqa: B006
    yes: Yes = False,
) -> None:
    """Sign the certificates of sites, and the list of members, which goes to everybody."""
    _check_installed()
    from peertune.deploy.organiser import Organiser

    organiser = Organiser.open(kits)
    asked = [organiser.read(path) for path in requests]
    for each in asked:
        typer.echo(f"{each.party:<16} {each.news:<8} {each.fingerprint}")
    unknown = any(each.news != "known" for each in asked)
    if unknown and not yes and not typer.confirm("Does every one of them read out the same?"):
        raise PeertuneError("not approved; ask for the request again, over another channel")
    _tell_list(organiser.approve(asked, changed))
    for party in organiser.waiting:
        typer.echo(f"still to come: the request of {party}")


def accept(
    kit: Kit,
    members: Annotated[Path, typer.Argument(help="The list of members that the organiser sent.")],
    changed: Changed = [],  # noqa: B006
    yes: Yes = False,
) -> None:
    """Take in the list of members, while nothing runs from the kit: its certificate, all others' keys, the
    configuration.
    """
    _check_installed()
    from peertune.deploy.members import examine, take
    from peertune.deploy.start import alone
    from peertune.deploy.trust import confirm

    offer = examine(kit, members, changed)
    with alone(kit):
        for line in offer.changes:
            typer.echo(f"changes: {line}")
        agreed = _compare(kit, offer.seen, yes)
        take(offer)
        if agreed:
            confirm(kit, offer.seen)
    typer.echo(f"{kit} is up to date")


def coordinator(kit: Kit, yes: Yes = False) -> None:
    """Run the coordinator's server, until Ctrl-C."""
    _check_installed()
    from peertune.deploy.kit import is_server

    if not is_server(kit):
        raise ConfigError(f"{kit} is a site's kit; start it with `peertune join {kit}`")
    _keep_running(kit, yes)


def join(
    kit: Kit,
    data: Annotated[Path | None, typer.Option(help="This agent's data, if not where the configuration says.")] = None,
    model: Annotated[str | None, typer.Option(help="Its model, if that has another place here.")] = None,
    runs: Annotated[Path | None, typer.Option(help="The folder of runs; `runs` in the kit by default.")] = None,
    yes: Yes = False,
) -> None:
    """Take part with the agent whose kit it is, until Ctrl-C. Its model and data stay here."""
    _check_installed()
    from peertune.deploy.home import settle
    from peertune.deploy.kit import is_server
    from peertune.deploy.start import alone

    if is_server(kit):
        raise ConfigError(f"{kit} is the coordinator's kit; start it with `peertune coordinator {kit}`")
    with alone(kit):
        settle(kit, model=model, data=data, runs=runs)
    _keep_running(kit, yes)


def status(on: On) -> None:
    """Show the runs that have been submitted and have not ended, and how far they are."""
    _check_installed()
    from peertune.deploy.hub import Hub
    from peertune.terminal import print_rows

    rows = []
    with closing(Hub(on, patience=0.0)) as hub:
        for job in hub.running():
            progress = hub.progress(job["id"]) or {}
            place = f"{progress['arm']}, round {progress['round']}" if "arm" in progress else ""
            rows.append([job["name"], job["status"], place, job["id"]])
    print_rows("runs", ["Run", "Status", "Where", "Job"], rows)


def stop(name: Annotated[str, typer.Argument(help="The name of a run.")], on: On) -> None:
    """Stop a run. The last whole round is kept: `peertune run FILE --on KIT --name NAME` goes on from it."""
    _check_installed()
    from peertune.deploy.hub import Hub

    with closing(Hub(on, patience=0.0)) as hub:
        jobs = hub.running(name)
        if not jobs:
            raise ConfigError(f"no run {name!r} is under way; `peertune status --on {on}` shows those that are")
        for job in jobs:
            hub.abort(job["id"])
    typer.echo(f"{name} is stopped")


def run_on(kit: Path, config: "Config", name: str) -> None:
    """Submit a run from the submitter's kit, or find it running, and follow it to its end. Raises `PeertuneError`."""
    _check_installed()
    from peertune.deploy.home import digest
    from peertune.deploy.hub import Hub, follow
    from peertune.deploy.job import site_of, write_job
    from peertune.deploy.preflight import check_run
    from peertune.runs import new_run

    new_run(kit, name)
    check_run(kit, config)
    sites = {party: site_of(party) for party in config.parties()}
    arguments = {"run": name, "wanted": digest(config), "sites": sites}
    with closing(Hub(kit)) as hub, tempfile.TemporaryDirectory() as place:
        outcome = follow(hub, name, lambda: write_job(Path(tempfile.mkdtemp(dir=place)), arguments), typer.echo, sites)
    if outcome.exit_code == ConfigError.exit_code:
        raise ConfigError(outcome.message)
    if outcome.exit_code:
        raise PeertuneError(outcome.message)
    typer.echo(f"{name} is done; on the coordinator's host: peertune show {name} --runs KIT/runs")


def preflight(kit: Path) -> "list[Check]":
    """What a kit needs, for `peertune doctor --deploy KIT`. Raises `ConfigError` if it is no kit."""
    _check_installed()
    from peertune.deploy.preflight import examine

    return examine(kit)


COMMANDS = (provision, request, approve, accept, renew, reconfigure, coordinator, join, status, stop)


def _tell_invitations(organiser: "Organiser") -> None:
    typer.echo(f"{'authority':<16} {organiser.authority}")
    for party, path in organiser.waiting.items():
        typer.echo(f"{party:<16} {path}: send it to {party}, who runs `peertune request {path.name}`")


def _tell_list(path: Path) -> None:
    typer.echo(f"{path} written: send it to everybody, who runs `peertune accept KIT {path.name}`")


def _tell_request(kit: Path, request: "Request") -> None:
    from peertune.deploy.documents import config_of, is_site, write_document
    from peertune.deploy.home import digest
    from peertune.deploy.request import newest_public
    from peertune.deploy.trust import invitation_of, read_out
    from peertune.guard.keys import grouped

    path, party = kit.with_name(f"{request.party}.request"), request.party
    write_document(path, request)
    typer.echo(f"authority        {request.authority}")
    typer.echo(f"configuration    {grouped(digest(config_of(invitation_of(kit).config)))}")
    typer.echo(f"{path} written: send it to the organiser")
    listeners = "to all" if is_site(party) else "to the organiser"
    typer.echo(f"own keys         {read_out(party, newest_public(kit, party), request.card)}: read it out {listeners}")


def _keep_running(kit: Path, yes: bool) -> None:
    from peertune.deploy.preflight import check_start
    from peertune.deploy.start import keep_running
    from peertune.deploy.trust import confirm, facts_of

    seen = facts_of(kit)
    check_start(kit)
    if _compare(kit, seen, yes):
        confirm(kit, seen)
    keep_running(kit, lambda line: typer.echo(line, err=True))


def _compare(kit: Path, seen: dict[str, str], yes: bool) -> bool:
    """Show what all must see alike. Has its owner said, now or before, that they do? Raises `PeertuneError` if not."""
    from peertune.deploy.trust import is_confirmed

    for name, digits in seen.items():
        typer.echo(f"{name:<24} {digits}")
    if is_confirmed(kit, seen):
        return True
    if not yes and not typer.confirm("Do these agree with what the others see?"):
        raise PeertuneError("nothing was changed or started; compare with the others over another channel")
    return not yes


def _check_installed() -> None:
    if find_spec("nvflare") is None:
        raise ConfigError("runs across organisations need NVIDIA FLARE; install it with `pip install peertune[flare]`")
