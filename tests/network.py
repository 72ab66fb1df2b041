"""Parties in namespaces of this machine: each has a link, a clock and disks of its own, and all of these can fail.

Nothing outlives the process that made it: namespaces end with their last process, and processes with their parents.
"""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

HUB, HOST, PORT = "coordinator", "hub.test", 8443
NET, WIRE = "10.77.0", "wire"
DISK = "48m"  # bytes of each small disk
COMMAND = [sys.executable, "-c", "from peertune.cli import main; main()"]
DAY = 86400  # seconds


def missing() -> str:
    """Why there can be no such federation here; nothing if there can."""
    for tool in ("unshare", "nsenter", "setpriv", "ip", "tc", "nft", "cc"):
        if shutil.which(tool) is None:
            return f"needs the command {tool}"
    lab = "ip link add v0 type veth peer name v1 && tc qdisc add dev v0 root tbf rate 1mbit burst 4k latency 1s && "
    lab += "nft add table inet t && mount -t tmpfs tmpfs /mnt"
    tried = subprocess.run(["unshare", "-n", "-m", "sh", "-c", lab], capture_output=True, text=True)
    return f"needs root and namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def off(seconds: int, folder: Path) -> list[str]:
    """What makes a command's wall clock be off; what that takes is made in `folder`."""
    if not seconds:
        return []
    library = folder.resolve() / "clock.so"
    if not library.exists():
        source = Path(__file__).parent / "clock.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return ["env", f"LD_PRELOAD={library}", f"CLOCK_OFF={seconds}"]


class Party:
    """The place of one party: a network with one link `WIRE`, a file system with small disks over `disks`."""

    def __init__(self, name: str, kit: Path, address: str, hosts: Path, disks: Sequence[str]) -> None:
        self.name, self.kit, self.address = name, kit, address
        self.log = kit.parent / f"{name}.log"
        holder = ["setpriv", "--pdeathsig", "KILL", "unshare", "-n", "-m", "sleep", "infinity"]
        self._holder = subprocess.Popen(holder)
        self._process: subprocess.Popen[bytes] | None = None
        until(lambda: self._namespace() != os.readlink("/proc/self/ns/net"), 10)
        self.do("mount", "--bind", str(hosts), "/etc/hosts")
        self.do("ip", "link", "set", "lo", "up")
        for disk in disks:
            (kit / disk).mkdir(exist_ok=True)
            self.do("mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(kit / disk))

    @property
    def pid(self) -> int:
        return self._holder.pid

    def inside(self, *command: str) -> list[str]:
        """`command`, to be run at this place."""
        return ["nsenter", "-t", str(self.pid), "-n", "-m", *command]

    def do(self, *command: str, given: str = "") -> None:
        done = subprocess.run(self.inside(*command), input=given, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)

    def run(self, *words: str, clock: int = 0, **options: object) -> "subprocess.Popen[str]":
        """`peertune words` with everything that comes of it in a process namespace: it ends with its first process.
        `clock`: seconds by which that is off.
        """
        alone = ["setpriv", "--pdeathsig", "KILL", *self.inside("unshare", "-p", "-f", "--kill-child", "--mount-proc")]
        keep = ["bash", "-c", '"$@" & wait $!', "bash"]  # the first process must wait for orphans
        return subprocess.Popen(
            [*alone, *keep, *off(clock, self.kit.parent), *COMMAND, *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            **options,  # pyright: ignore[reportArgumentType, reportCallIssue]
        )

    def start(self, clock: int = 0) -> None:
        """Its `peertune join`, or `peertune coordinator`."""
        verb = "coordinator" if self.name == HUB else "join"
        with self.log.open("ab") as log:
            self._process = self.run(verb, str(self.kit), "--yes", clock=clock, stdout=log, stderr=log)

    def kill(self) -> None:
        """kill -9 of everything that runs here."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def leave(self) -> None:
        self.kill()
        self._holder.kill()
        self._holder.wait()

    # Its link. Rules are for what comes in at one of its ends, so that a sender never hears of a packet that was lost.

    def unplug(self) -> None:
        self.do("ip", "link", "set", WIRE, "down")

    def plug(self) -> None:
        self.do("ip", "link", "set", WIRE, "up")

    def lose(self, percent: int) -> None:
        """Packets that arrive here; all of them with 100."""
        rule = "drop" if percent == 100 else f"numgen random mod 100 < {percent} drop"
        hook = "{ type filter hook input priority 0; }"
        rules = [
            "add table inet fault",
            f"add chain inet fault c {hook}",
            f"add rule inet fault c iifname {WIRE} {rule}",
        ]
        self.do("nft", "-f", "-", given="\n".join(rules))

    def throttle(self, rate: str, device: str = WIRE) -> None:
        self.do("tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", rate, "burst", "4kb", "latency", "5s")

    def heal(self, device: str = WIRE) -> None:
        """Take all rules away."""
        for command in (["nft", "flush", "ruleset"], ["tc", "qdisc", "del", "dev", device, "root"]):
            subprocess.run(self.inside(*command), capture_output=True)

    # Its disks.

    def path(self, disk: str) -> Path:
        """Where this process finds one of its disks."""
        return Path(f"/proc/{self.pid}/root{self.kit.resolve() / disk}")

    def fill(self, disk: str) -> None:
        with suppress(OSError), (self.path(disk) / "ballast").open("wb", buffering=0) as file:
            while file.write(bytes(1 << 12)):
                pass

    def empty(self, disk: str) -> None:
        (self.path(disk) / "ballast").unlink(missing_ok=True)

    def _namespace(self) -> str:
        try:
            return os.readlink(f"/proc/{self.pid}/ns/net")
        except OSError:
            return os.readlink("/proc/self/ns/net")


class Network:
    """The coordinator's place, with a bridge, and the sites', each with a link to it."""

    def __init__(self, folder: Path, kits: dict[str, Path], disks: Sequence[str]) -> None:
        self.folder, self.submitter = folder, kits["submitter"]
        hosts = folder / "hosts"
        hosts.write_text(f"127.0.0.1 localhost\n{NET}.1 {HOST}\n")
        sites = sorted(kits.keys() - {HUB, "submitter"})
        self.hub = Party(HUB, kits[HUB], f"{NET}.1", hosts, ["runs"])
        self.hub.do("ip", "link", "add", WIRE, "type", "bridge")
        self.hub.do("ip", "addr", "add", f"{NET}.1/24", "dev", WIRE)
        self.hub.do("ip", "link", "set", WIRE, "up")
        self.sites: dict[str, Party] = {}
        for number, name in enumerate(sites, 2):
            self.sites[name] = self._join(Party(name, kits[name], f"{NET}.{number}", hosts, disks))

    def _join(self, site: Party) -> Party:
        ends = f"{WIRE} netns {site.pid} type veth peer name {site.name} netns {self.hub.pid}".split()
        subprocess.run(["ip", "link", "add", *ends], check=True)
        self.hub.do("ip", "link", "set", site.name, "master", WIRE, "up")
        site.do("ip", "addr", "add", f"{site.address}/24", "dev", WIRE)
        site.do("ip", "link", "set", WIRE, "up")
        return site

    @property
    def parties(self) -> list[Party]:
        return [self.hub, *self.sites.values()]

    def start(self) -> None:
        for party in self.parties:
            party.start()

    def close(self) -> None:
        for party in reversed(self.parties):
            party.leave()


def until(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below `folder`, and every file of every archive."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path, path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    yield from ((path / name, archive.read(name)) for name in archive.namelist())
