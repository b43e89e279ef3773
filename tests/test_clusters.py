"""The cluster files: Ray's reading of them, and the machines, roles and rules that they create in a simulated AWS."""

from __future__ import annotations

import http.server
import json
import os
import shlex
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import kubernetes_validate
import pytest
import ray
import yaml
from moto import mock_aws

from sacpo.cluster import spot
from tests.s3 import KEYS
from tests.spaces import ROOT

RAY_AZURE = Path(ray.__file__).parent / "autoscaler" / "_private" / "_azure"
STACK = ROOT / "clusters" / "aws-stack.yaml"
SSH_FROM = "203.0.113.7/32"


def prepared(path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A cluster file as `ray up` reads it, with a token in the place where it expects one."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("0" * 64)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(ROOT)
    config: dict[str, Any] = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    return config


@pytest.mark.parametrize("name", ["cluster.yaml", "clusters/owned.yaml", "clusters/gcp.yaml", "clusters/azure.yaml"])
def test_ray_accepts_the_file_and_every_node_requires_the_token(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepared(ROOT / name, tmp_path, monkeypatch)
    for command in config["head_start_ray_commands"][1:2] + config["worker_start_ray_commands"][1:2]:
        assert "RAY_AUTH_MODE=token ray start" in command
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"][0]
    for command in config["setup_commands"]:
        shlex.split(command)  # fails on an open quote, which a text cut off as a YAML comment leaves behind
    installs = [command for command in config["setup_commands"] if "constraints.txt" in command]
    assert len(installs) == 1
    assert not any("ray-3.0.0.dev0" in command for command in config["setup_commands"]), "Ray's own default"


@pytest.mark.parametrize("name", ["clusters/gcp.yaml", "clusters/azure.yaml"])
def test_only_workers_of_other_clouds_are_on_spot_and_they_have_the_resources_of_their_kind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepared(ROOT / name, tmp_path, monkeypatch)
    kinds = config["available_node_types"]
    assert {kind: node["resources"].get("GPU", 0) for kind, node in kinds.items()} == {
        "head": 0,
        "train": 8,
        "answer": 1,
    }
    assert {kind: "spot" in str(node["node_config"]).lower() for kind, node in kinds.items()} == {
        "head": False,
        "train": True,
        "answer": True,
    }
    assert sum(node.get("max_workers", 0) for kind, node in kinds.items() if kind != "head") == config["max_workers"]
    assert not any("pip install google-api-python-client==" in line for line in config["head_setup_commands"])
    assert config["worker_setup_commands"] == config["setup_commands"], "without what the head alone needs"
    azure = json.loads((RAY_AZURE / "azure-vm-template.json").read_text())["parameters"]
    for node in kinds.values():
        assert set(node["node_config"].get("azure_arm_parameters", {})) <= set(azure), "Ray's template ends at others"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        yield


def make_stack(region: str) -> None:
    """Create the CloudFormation stack of the project."""
    vpcs = boto3.client("ec2", region_name=region).describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])
    values = {"Bucket": "sweeps", "SshFrom": SSH_FROM, "Vpc": vpcs["Vpcs"][0]["VpcId"]}
    boto3.client("cloudformation", region_name=region).create_stack(
        StackName="sacpo",
        TemplateBody=STACK.read_text(),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
    )


def statements(document: Any) -> list[dict[str, Any]]:
    """The statements of a policy; the simulated AWS keeps a template's document as text."""
    while isinstance(document, str):
        document = yaml.safe_load(document)
    result: list[dict[str, Any]] = document["Statement"]
    return result


@pytest.mark.slow
@pytest.mark.usefixtures("aws")
def test_on_aws_the_right_machines_start_with_the_right_roles_and_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = prepared(ROOT / "cluster.yaml", tmp_path, monkeypatch)
    region = config["provider"]["region"]
    ec2 = boto3.client("ec2", region_name=region)
    make_stack(region)
    image = ec2.describe_images()["Images"][0]["ImageId"]
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["ImageId"].startswith("resolve:ssm:")
        kind["node_config"]["ImageId"] = image  # the simulated AWS has its own
    config = AWSNodeProvider.fillout_available_node_types_resources(bootstrap_aws(config))
    gpus = {name: kind["resources"].get("GPU", 0) for name, kind in config["available_node_types"].items()}
    assert gpus == {"head": 0, "train": 8, "answer": 1}
    provider = AWSNodeProvider(config["provider"], "sacpo")
    for name, kind in config["available_node_types"].items():
        provider.create_node(kind["node_config"], {"ray-node-type": "head" if name == "head" else "worker"}, 1)
    machines = {
        machine["InstanceType"]: machine
        for reservation in ec2.describe_instances()["Reservations"]
        for machine in reservation["Instances"]
    }
    kinds = config["available_node_types"]
    assert set(machines) == {kind["node_config"]["InstanceType"] for kind in kinds.values()}
    for name, kind in kinds.items():
        machine = machines[kind["node_config"]["InstanceType"]]
        role = "sacpo-head" if name == "head" else "sacpo-worker"
        assert machine["IamInstanceProfile"]["Arn"].endswith(f"/{role}")
        assert machine.get("InstanceLifecycle") == (None if name == "head" else "spot")
        assert [group["GroupName"] for group in machine["SecurityGroups"]] == ["sacpo"]
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    group = ec2.describe_security_groups(GroupNames=["sacpo"])["SecurityGroups"][0]
    outside = [(r["IpProtocol"], r.get("FromPort"), r["IpRanges"]) for r in group["IpPermissions"] if r["IpRanges"]]
    assert [(protocol, port, [r["CidrIp"] for r in ranges]) for protocol, port, ranges in outside] == [
        ("tcp", 22, [SSH_FROM])
    ]
    inside = [r["UserIdGroupPairs"][0]["GroupId"] for r in group["IpPermissions"] if r["UserIdGroupPairs"]]
    assert inside == [group["GroupId"]]


@pytest.mark.slow
@pytest.mark.usefixtures("aws")
def test_roles_reach_only_the_named_bucket_and_the_heads_own_workers() -> None:
    make_stack("us-west-2")
    iam = boto3.client("iam", region_name="us-west-2")
    attached = {
        role: [policy["PolicyName"] for policy in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]]
        for role in ("sacpo-head", "sacpo-worker")
    }
    assert attached == {"sacpo-head": ["sacpo-store"], "sacpo-worker": ["sacpo-store"]}
    assert iam.list_role_policies(RoleName="sacpo-worker")["PolicyNames"] == []
    arn = next(p["Arn"] for p in iam.list_policies(Scope="Local")["Policies"] if p["PolicyName"] == "sacpo-store")
    document = iam.get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]["Document"]
    assert {s["Resource"] for s in statements(document)} == {"arn:aws:s3:::sweeps", "arn:aws:s3:::sweeps/*"}
    workers = iam.get_role_policy(RoleName="sacpo-head", PolicyName="workers")["PolicyDocument"]
    ends = next(s for s in statements(workers) if "ec2:TerminateInstances" in s["Action"])
    name = yaml.safe_load((ROOT / "cluster.yaml").read_text())["cluster_name"]
    assert ends["Condition"] == {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": name}}


def test_the_pods_of_the_kubernetes_file_are_valid_and_require_the_token() -> None:
    cluster = yaml.safe_load((ROOT / "clusters" / "kuberay.yaml").read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in groups:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.30", strict=True)
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**pod, "spec": {**pod["spec"], "contaners": []}}, "1.30", strict=True)
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={cluster['spec']['rayVersion']}" in constraints


class Metadata(http.server.BaseHTTPRequestHandler):
    """The instance metadata service, version 2: 404 until there is a notice."""

    notice: str | None = None
    asked = threading.Event()  # set by the first request for the notice

    def do_PUT(self) -> None:
        self._answer(200, "token")

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != "token":
            self._answer(401, "")
            return
        self.asked.set()
        if self.notice is None:
            self._answer(404, "")
        else:
            self._answer(200, json.dumps({"action": "terminate", "time": self.notice}))

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def notices() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    Metadata.notice = None
    Metadata.asked.clear()
    server.shutdown()
    server.server_close()


def test_a_notice_is_read_as_seconds_left(notices: str) -> None:
    now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC).timestamp()
    assert spot.seconds_left(notices, now) is None
    Metadata.notice = "2026-11-21T12:02:00Z"
    assert spot.seconds_left(notices, now) == 120


DRAINED = """
import subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)
command = [sys.executable, "-m", "sacpo.cluster.spot", "--address", cluster.address, "--node", node.node_id]
watch = subprocess.Popen([*command, "--metadata", sys.argv[1]])
print("watching", flush=True)
print("watch ended with", watch.wait(60), flush=True)
from ray._raylet import GcsClient
import time
for _ in range(300):
    states = {i.hex(): info.state for i, info in GcsClient(address=cluster.address).get_all_node_info().items()}
    if states[node.node_id]:
        break
    time.sleep(0.1)
print("states", sorted(states.values()), states[node.node_id], flush=True)
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_spot_notice_reaches_ray_which_drains_the_node(notices: str) -> None:
    script = subprocess.Popen([sys.executable, "-c", DRAINED, notices], stdout=subprocess.PIPE, text=True)
    assert script.stdout is not None
    assert script.stdout.readline().strip() == "watching"
    assert Metadata.asked.wait(60)
    Metadata.notice = datetime.fromtimestamp(time.time() + 120, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    output = script.communicate(timeout=120)[0]
    assert "watch ended with 0" in output
    assert "states [0, 1] 1" in output, output  # the head is alive; the drained node is dead long before the deadline


@pytest.mark.usefixtures("ray_cluster")
def test_the_cluster_refuses_clients_without_its_token() -> None:
    import ray

    dashboard = f"http://{ray._private.worker.get_dashboard_url()}"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{dashboard}/api/jobs/", timeout=10)
    address = ray.get_runtime_context().gcs_address
    intruder = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print(ray.cluster_resources())"
    command = [sys.executable, "-c", intruder, address]
    refused = ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
    intruders = [
        subprocess.Popen(command, env=os.environ | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for more in refused
    ]
    for process in intruders:
        output = process.communicate(timeout=120)[0]
        assert process.returncode != 0
        assert "CPU" not in output
        assert "auth" in output.lower()
