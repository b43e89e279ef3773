"""`python -m sacpo.cluster.spot`: tells Ray when AWS is about to take this spot machine back.

Ray then starts nothing new here, a stage that runs here writes a checkpoint (`sacpo.cluster.trainer`), and when the
machine is gone Ray Train goes on from that elsewhere; nothing in Ray's AWS provider asks for the notice. Started on
every worker by cluster.yaml; ends after the notice.

AWS gives it two minutes before, at the instance metadata service (version 2):
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

METADATA = "http://169.254.169.254"
_POLL_S = 5.0  # as AWS advises
_LEAST_S = 5


def seconds_left(metadata: str, now: float) -> float | None:
    """Seconds until the machine is taken back; none while it is not to be.

    Args:
        metadata: The metadata service's address.
        now: Seconds since the epoch.

    Raises:
        OSError: the service does not answer as it should.
    """
    token = _ask(f"{metadata}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    try:
        notice = _ask(f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}, "GET")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    when = datetime.strptime(json.loads(notice)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return when.timestamp() - now


def _ask(url: str, headers: dict[str, str], method: str) -> str:
    request = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310 - an address of our own
    with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
        text: str = answer.read().decode()
    return text


def drain(address: str, node: str | None, left: float) -> None:
    """Tell the cluster that this node goes in `left` seconds.

    Raises:
        subprocess.CalledProcessError: it was not accepted.
    """
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "AWS takes the spot machine back"]
    command += ["--deadline-remaining-seconds", str(max(_LEAST_S, int(left)))]
    subprocess.run(command + (["--node-id", node] if node else []), check=True)


def main(argv: list[str] | None = None) -> int:
    """Watch until there is a notice and the cluster knows of it."""
    parser = argparse.ArgumentParser(prog="python -m sacpo.cluster.spot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", required=True, help="the cluster's HOST:PORT")
    parser.add_argument("--node", help="id of the node to drain (default: this machine's)")
    parser.add_argument("--metadata", default=METADATA, help="address of the instance metadata service")
    arguments = parser.parse_args(argv)
    while True:
        try:
            left = seconds_left(arguments.metadata, time.time())
            if left is not None:
                drain(arguments.address, arguments.node, left)
                print(f"told {arguments.address}: {left:.0f} s left", flush=True)
                return 0
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"trying again: {error}", file=sys.stderr, flush=True)
        time.sleep(_POLL_S)


if __name__ == "__main__":
    sys.exit(main())
