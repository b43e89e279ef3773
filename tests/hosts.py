"""Simulated machines: network, mount, process and host-name namespaces of this one, reached by SSH over a bridge.

Each has a home, a temporary folder and shared memory of its own; `/mnt/shared` is the same on all. Software that is
installed on this machine is installed on all of them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NETWORK = f"10.213.{os.getpid() % 254}"  # another network for each process: a killed test leaves its bridge behind
_TOOLS = ("sshd", "ssh", "ssh-keygen", "rsync", "ip", "unshare", "mount")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_START = """
set -e
hostname {name}
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/home/.ssh /mnt/shared /mnt/tmp
mount --bind {shared} /mnt/shared
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
sed 's|^root:.*|root:*:0:0:root:/mnt/home:/bin/bash|' /etc/passwd > /mnt/passwd
mount --bind /mnt/passwd /etc/passwd
cp {folder}/key.pub /mnt/home/.ssh/authorized_keys
chmod -R go= /mnt/home
echo 'export RAY_TMPDIR=/mnt/tmp PYTHONPATH=$HOME/sacpo' > /mnt/home/.bashrc
exec {sshd} -D -e -o Port=22 -o HostKey={folder}/key -o UsePAM=no -o PermitRootLogin=yes -o PidFile=none
"""


@dataclass(frozen=True)
class Hosts:
    """Running machines: addresses, the private key for root, and the shared folder as a path of this machine."""

    addresses: list[str]
    key: Path
    shared: Path


def missing() -> str | None:
    """Why this machine cannot have such hosts; None if it can."""
    absent = [tool for tool in _TOOLS if shutil.which(tool, path=PATH) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: openssh-server, rsync)"
    attempt = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False
    )
    return None if attempt.returncode == 0 and os.geteuid() == 0 else "namespaces and bridges need root"


@contextlib.contextmanager
def running(count: int, folder: Path) -> Iterator[Hosts]:
    """Run `count` hosts until the block ends."""
    hosts = Hosts([f"{NETWORK}.{2 + i}" for i in range(count)], folder / "key", folder / "shared")
    hosts.shared.mkdir()
    _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(hosts.key))
    bridge = f"sacpo{os.getpid() % 10**8}"
    processes: list[subprocess.Popen[bytes]] = []
    _do("ip", "link", "add", bridge, "type", "bridge")
    try:
        _do("ip", "address", "add", f"{NETWORK}.1/24", "dev", bridge)
        _do("ip", "link", "set", bridge, "up")
        for address in hosts.addresses:
            processes.append(_start(address, bridge, hosts, folder))
        for address in hosts.addresses:
            _wait(address)
        yield hosts
    finally:
        for process in processes:
            process.kill()  # also ends the first process of its namespace (--kill-child), and with it all others
            process.wait()
        _do("ip", "link", "delete", bridge)


def _start(address: str, bridge: str, hosts: Hosts, folder: Path) -> subprocess.Popen[bytes]:
    number = address.rpartition(".")[2]
    sshd = shutil.which("sshd", path=PATH)
    script = _START.format(name=f"host-{number}", shared=hosts.shared, folder=folder, sshd=sshd)
    command = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
    with (folder / f"host-{number}.log").open("wb") as log:
        process = subprocess.Popen([*command, "sh", "-c", f"read go; {script}"], stdin=subprocess.PIPE, stderr=log)
    while os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        time.sleep(0.01)
    outer, inner = f"{bridge}-{number}"[-15:], "eth0"
    inside = ["nsenter", "--target", str(process.pid), "--net", "ip"]
    _do("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", str(process.pid))
    _do("ip", "link", "set", outer, "master", bridge, "up")
    _do(*inside, "link", "set", "lo", "up")
    _do(*inside, "address", "add", f"{address}/24", "dev", inner)
    _do(*inside, "link", "set", inner, "up")
    _do(
        *inside, "route", "add", "default", "via", f"{NETWORK}.1"
    )  # Ray finds its own address by this route; nothing is behind it
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.close()
    return process


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PATH": PATH})


def _wait(address: str) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError):
            socket.create_connection((address, 22), timeout=1).close()
            return
        time.sleep(0.1)
    raise AssertionError(f"no SSH server listens on {address}:22")
