"""`python -m sacpo.cluster.spot`: tells Ray when AWS is about to reclaim this spot instance.

Ray then starts nothing new on the node, and a stage that runs there writes a checkpoint (`sacpo.cluster.worker`). When
the instance has ended, Ray Train resumes the stage from that checkpoint on another node. Ray's AWS provider does not
read the notice itself. cluster.yaml starts this command on every worker node; it exits after the notice.

AWS gives the notice two minutes ahead, in the instance metadata service (version 2):
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
_MIN_DEADLINE_S = 5


def seconds_left(metadata: str, now: float) -> float | None:
    """Seconds until AWS reclaims the instance; None if no notice was given.

    Args:
        metadata: Address of the metadata service.
        now: Seconds since the epoch.

    Raises:
        OSError: the service cannot be reached, or answers with an error.
    """
    token = _request(f"{metadata}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    url = f"{metadata}/latest/meta-data/spot/instance-action"
    try:
        notice = _request(url, {"X-aws-ec2-metadata-token": token}, "GET")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    time_of_action = datetime.strptime(json.loads(notice)["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return time_of_action.timestamp() - now


def _request(url: str, headers: dict[str, str], method: str) -> str:
    request = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310 - the metadata service
    with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310
        content: bytes = response.read()
    return content.decode()


def drain(address: str, node_id: str | None, seconds: float) -> None:
    """Tell the cluster that a node goes away in `seconds` seconds.

    Args:
        address: The cluster's HOST:PORT.
        node_id: The node; None for this machine's.
        seconds: Time until it goes away.

    Raises:
        subprocess.CalledProcessError: the cluster did not accept it.
    """
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "AWS reclaims the spot instance"]
    command += ["--deadline-remaining-seconds", str(max(_MIN_DEADLINE_S, int(seconds)))]
    subprocess.run(command + (["--node-id", node_id] if node_id else []), check=True)


def main(argv: list[str] | None = None) -> int:
    """Poll until there is a notice and the cluster has accepted it."""
    parser = argparse.ArgumentParser(prog="python -m sacpo.cluster.spot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", required=True, help="the cluster's HOST:PORT")
    parser.add_argument("--node", help="id of the node to drain (default: this machine's)")
    parser.add_argument("--metadata", default=METADATA, help="address of the instance metadata service")
    arguments = parser.parse_args(argv)
    while True:
        try:
            seconds = seconds_left(arguments.metadata, time.time())
            if seconds is not None:
                drain(arguments.address, arguments.node, seconds)
                print(f"{arguments.address} drains this node; AWS reclaims it in {seconds:.0f} s", flush=True)
                return 0
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"retrying in {_POLL_S:.0f} s: {error}", file=sys.stderr, flush=True)
        time.sleep(_POLL_S)


if __name__ == "__main__":
    sys.exit(main())
