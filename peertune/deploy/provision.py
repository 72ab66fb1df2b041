"""All kits of a federation in one place, by one hand: for tests, and where one owner has all machines."""

from pathlib import Path

from peertune.config.schema import Config
from peertune.deploy.documents import project_of
from peertune.deploy.members import examine, take
from peertune.deploy.organiser import OWN, Organiser
from peertune.deploy.request import begin


def provision(config: Config, project: str, address: tuple[str, int], to: Path) -> dict[str, Path]:
    """Make the kits of everybody here, with everybody's keys: name -> folder. Each must then go to its owner and nobody
    else.

    `address`: host and port of the coordinator, as the sites will know it. Raises `ConfigError`.
    """
    organiser = Organiser.found(to, config, project_of(project, *address))
    kits = {name: to / name for name in (*OWN, *config.parties())}
    requests = [begin(organiser.invitation(party), kits[party]) for party in config.parties()]
    organiser.approve([organiser.check(each) for each in requests])
    for kit in kits.values():
        take(examine(kit, organiser.list))
    return kits
