"""The commands of a run across organisations: `provision`, `coordinator`, `join`, `status`, `stop`, and `run --on`."""

import tempfile
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peertune.errors import ConfigError, PeertuneError
from peertune.options import Set, Source

if TYPE_CHECKING:
    from peertune.config.schema import Config

Kit = Annotated[Path, typer.Argument(help="A start-up kit, as `peertune provision` makes them.")]
On = Annotated[Path, typer.Option("--on", metavar="KIT", help="The submitter's kit.")]
OptionalOn = Annotated[
    Path | None, typer.Option("--on", metavar="KIT", help="Submit it from the submitter's kit, and follow it.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def provision(
    file: Source,
    host: Annotated[str, typer.Option(help="The coordinator's host, as all sites will know it.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its one open port.")] = 443,
    to: Annotated[Path, typer.Option(help="The folder to write.")] = Path("kits"),
    project: Annotated[str, typer.Option(help="The name of the federation.")] = "peertune",
    set: Set = [],  # noqa: B006
) -> None:
    """Make the start-up kits of a run: for the coordinator, for every agent, and to submit runs with.

    All keys are made here. Give each kit to its owner over a channel that you trust, and keep `authority` to yourself:
    it signs certificates.
    """
    _check_installed()
    from peertune.config import read_config, resolve_recipe
    from peertune.deploy.provision import provision as make

    kits = make(read_config(resolve_recipe(file), set), project, (host, port), to)
    for owner, kit in kits.items():
        typer.echo(f"{owner:<16} {kit}")


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

    if is_server(kit):
        raise ConfigError(f"{kit} is the coordinator's kit; start it with `peertune coordinator {kit}`")
    settle(kit, model=model, data=data, runs=runs)
    _keep_running(kit, yes)


def keys(kit: Kit) -> None:
    """Make the keys of this party anew, here, so that nobody else has ever had them; the others must pin its card."""
    from peertune.deploy.sealing import own_keys

    card, found = own_keys(kit)
    typer.echo(f"{card} written; fingerprint {found}")
    typer.echo("give the file to all other parties, who pin it: `peertune pin KIT CARD`")


def pin(
    kit: Kit,
    card: Annotated[Path, typer.Argument(help="Another party's card, as `peertune keys` writes it.")],
    yes: Yes = False,
) -> None:
    """Pin the keys of another party: only what is sealed and signed with them is read."""
    from peertune.deploy.sealing import pinned, read_card

    found = read_card(card)
    typer.echo(f"{found.name}  {found.fingerprint}")
    if not yes and not typer.confirm(f"Does {found.name} read out the same?"):
        raise PeertuneError(f"not pinned; ask {found.name} for its card, over another channel")
    pinned(kit).pin(found)


def status(on: On) -> None:
    """Show the runs that have been submitted and have not ended, and how far they are."""
    _check_installed()
    from peertune.deploy.hub import Hub
    from peertune.terminal import print_rows

    hub = Hub(on, patience=0.0)
    rows = []
    for job in hub.running():
        progress = hub.progress(job["id"]) or {}
        place = f"{progress['arm']}, round {progress['round']}" if "arm" in progress else ""
        rows.append([job["name"], job["status"], place, job["id"]])
    hub.close()
    print_rows("runs", ["Run", "Status", "Where", "Job"], rows)


def stop(name: Annotated[str, typer.Argument(help="The name of a run.")], on: On) -> None:
    """Stop a run. The last whole round is kept: `peertune run FILE --on KIT --name NAME` goes on from it."""
    _check_installed()
    from peertune.deploy.hub import Hub

    hub = Hub(on, patience=0.0)
    jobs = hub.running(name)
    if not jobs:
        raise ConfigError(f"no run {name!r} is under way; `peertune status --on {on}` shows those that are")
    for job in jobs:
        hub.abort(job["id"])
    hub.close()
    typer.echo(f"{name} is stopped")


def run_on(kit: Path, config: "Config", name: str) -> None:
    """Submit a run from the submitter's kit, or find it running, and follow it to its end. Raises `PeertuneError`."""
    _check_installed()
    from peertune.deploy.home import digest
    from peertune.deploy.hub import Hub, follow
    from peertune.deploy.job import site_of, write_job
    from peertune.runs import new_run

    new_run(kit, name)
    arguments = {"run": name, "wanted": digest(config), "sites": {party: site_of(party) for party in config.parties()}}
    hub = Hub(kit)
    with closing(hub), tempfile.TemporaryDirectory() as place:
        outcome = follow(hub, name, lambda: write_job(Path(tempfile.mkdtemp(dir=place)), arguments), typer.echo)
    if outcome.exit_code == ConfigError.exit_code:
        raise ConfigError(outcome.message)
    if outcome.exit_code:
        raise PeertuneError(outcome.message)
    typer.echo(f"{name} is done; on the coordinator's host: peertune show {name} --runs KIT/runs")


COMMANDS = (provision, coordinator, join, keys, pin, status, stop)


def _keep_running(kit: Path, yes: bool) -> None:
    from peertune.deploy.kit import fingerprint, is_server
    from peertune.deploy.sealing import fingerprints
    from peertune.deploy.start import keep_running

    startup = kit / "startup"
    own = startup / ("server.crt" if (startup / "server.crt").is_file() else "client.crt")
    typer.echo(f"this kit's certificate  {fingerprint(own)}")
    typer.echo(f"the authority's         {fingerprint(startup / 'rootCA.pem')}")
    for party, digits in ({} if is_server(kit) else fingerprints(kit)).items():
        typer.echo(f"keys of {party:<15} {digits}")
    if not yes and not typer.confirm("Do these agree with what the others see?"):
        raise PeertuneError("not started; ask whoever made the kits for theirs, over another channel")
    keep_running(kit, lambda line: typer.echo(line, err=True))


def _check_installed() -> None:
    if find_spec("nvflare") is None:
        raise ConfigError("runs across organisations need NVIDIA FLARE; install it with `pip install peertune[flare]`")
