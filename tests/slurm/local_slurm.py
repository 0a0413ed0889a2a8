"""A real Slurm on this machine, for tests: started by a fixture, stopped by it, nothing left behind.

It starts its own `munged`, `slurmctld` and one `slurmd` per node, with ports, key, sockets, state and logs of their own
in one temporary folder, so it neither needs nor disturbs an installed cluster. Jobs run as the user of the tests.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

INSTALL = "apt-get update && apt-get install -y slurm-wlm munge"
ADDRESS = "127.0.0.1"
FINAL_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}

# linuxproc and task/none: no cgroups, so that this also works in a container, and without being root.
# cred_expire: a requeued job waits this long before it starts again (the default is two minutes).
SLURM_CONF = """\
ClusterName=memtrain
SlurmctldHost=localhost({address})
SlurmctldPort={ctld_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=3600
FirstJobId={first_job}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class LocalSlurm:
    """Start with `with LocalSlurm() as slurm:`; every command is run with the environment that finds this cluster.

    Args:
        nodes: How many nodes this machine plays: `node1`, `node2`, …
        cpus: How many CPUs each of them declares; more than the machine has is allowed.
    """

    def __init__(self, nodes: int = 2, cpus: int = 2) -> None:
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.cpus = cpus
        self.folder = Path()
        self.environment: dict[str, str] = {}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> LocalSlurm:
        # Not pytest's tmp_path: the path of a Unix socket may have 108 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._cancel_everything()
        finally:
            for daemon in reversed(self._daemons):
                _stop(daemon)
            self._daemons.clear()
            self._kill_leftovers()
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str | Path, check: bool = True, cwd: Path | None = None) -> str:
        """Run a Slurm client command and return what it printed."""
        done = subprocess.run(
            [str(part) for part in command],
            env=self.environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{command} exited with {done.returncode}:\n{done.stdout}\n{self.logs()}")
        return done.stdout

    def submit(self, script: Path, *arguments: str, options: Sequence[str], cwd: Path) -> str:
        """`sbatch` a script with options that override its `#SBATCH` lines, and return the job's id."""
        printed = self.run("sbatch", "--parsable", *options, script, *arguments, cwd=cwd)
        return printed.split()[-1].split(";")[0]

    def job(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`, which needs no accounting database."""
        printed = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in printed.split() if "=" in word)

    def wait(self, job: str, *, timeout: float) -> dict[str, str]:
        """Wait until a job is over, however it ended, and return its fields."""
        fields: dict[str, str] = {}

        def over() -> bool:
            fields.clear()
            fields.update(self.job(job))
            return fields["JobState"] in FINAL_STATES

        wait_for(over, timeout, lambda: f"job {job} to end; it is {fields}\n{self.logs()}")
        return fields

    def logs(self) -> str:
        """The last lines of each daemon's log."""
        parts = []
        for log in sorted(self.folder.glob("*.log")):
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
            parts.append(f"--- {log.name}\n{tail}")
        return "\n".join(parts)

    def _start(self) -> None:
        folder = self.folder
        for name in ("state", *(f"spool-{node}" for node in self.nodes)):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        ctld_port, *node_ports = _free_ports(1 + len(self.nodes))
        (folder / "slurm.conf").write_text(
            SLURM_CONF.format(
                folder=folder,
                address=ADDRESS,
                user=_user(),
                ctld_port=ctld_port,
                nodes="\n".join(
                    f"NodeName={node} NodeAddr={ADDRESS} Port={port} CPUs={self.cpus} State=UNKNOWN"
                    for node, port in zip(self.nodes, node_ports, strict=True)
                ),
                # Lightning derives its port from the job id: two such clusters on one machine must not share ids.
                first_job=random.SystemRandom().randrange(1, 9_000),
            )
        )
        (folder / "cgroup.conf").write_text(f"CgroupPlugin={_cgroup_plugin()}\n")
        # Not inherited: variables of a job that these tests may themselves run in.
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN"))}
        self.environment["SLURM_CONF"] = str(folder / "slurm.conf")
        self.environment["PATH"] = _path()
        # Lightning connects to the first node by its name, and no resolver knows these names.
        self.environment["MASTER_ADDR"] = ADDRESS

        munge = folder / "munge.socket"
        self._launch(
            "munged",
            "--foreground",
            "--force",
            f"--socket={munge}",
            f"--key-file={key}",
            f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log",
            f"--seed-file={folder}/munged.seed",
            "--num-threads=2",
        )
        wait_for(munge.exists, 20, lambda: f"munged\n{self.logs()}")
        self._launch("slurmctld", "-D", "-i", "-f", f"{folder}/slurm.conf")
        for node in self.nodes:
            self._launch("slurmd", "-D", "-N", node, "-f", f"{folder}/slurm.conf", log=f"slurmd-{node}")

        def idle() -> bool:
            for daemon in self._daemons:
                if daemon.poll() is not None:
                    raise RuntimeError(f"{daemon.args} exited with {daemon.returncode}\n{self.logs()}")
            states = self.run("sinfo", "--noheader", "--Node", "--format=%T", check=False)
            return states.split() == ["idle"] * len(self.nodes)

        wait_for(idle, 40, lambda: f"the nodes to become idle\n{self.logs()}")

    def _launch(self, name: str, *arguments: str, log: str = "") -> None:
        program = shutil.which(name, path=_path())
        assert program is not None
        with open(self.folder / f"{log or name}.out.log", "wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    [program, *arguments],
                    env=self.environment,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C reaches the tests only; they then stop the daemons in order.
                    start_new_session=True,
                )
            )

    def _cancel_everything(self) -> None:
        if len(self._daemons) < 2 + len(self.nodes) or any(daemon.poll() is not None for daemon in self._daemons):
            return
        with contextlib.suppress(Exception):
            self.run("scancel", "--user", _user(), check=False)
            wait_for(
                lambda: not self.run("squeue", "--noheader", check=False).strip(), 15, lambda: "the queue to empty"
            )

    def _kill_leftovers(self) -> None:
        """Kill job processes that outlived the daemons: those whose environment names this cluster's `slurm.conf`."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)


@pytest.fixture(scope="module")
def slurm() -> Iterator[LocalSlurm]:
    """A running cluster of two nodes for the tests of a module."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=_path())]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found; to run this test: {INSTALL}")
    # `kill` and `timeout` end the tests the way Ctrl-C does, so that the daemons are stopped then, too.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with LocalSlurm() as cluster:
            yield cluster
    finally:
        signal.signal(signal.SIGTERM, before)


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _cgroup_plugin() -> str:
    """The plugin that leaves cgroups alone: the default one wants systemd on the bus, which containers lack."""
    printed = subprocess.run(["slurmctld", "-V"], env={"PATH": _path()}, capture_output=True, text=True, check=True)
    major, minor = re.findall(r"(\d+)\.(\d+)", printed.stdout)[0]
    return "disabled" if (int(major), int(minor)) >= (23, 11) else "cgroup/v1"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


def wait_for(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    """Ask twice a second; :class:`TimeoutError` in the end."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what()}")
        time.sleep(0.5)


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=15)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
