"""cluster.yaml, kuberay.yaml and what a job ships: by Ray's own validation, and by rules for what
that does not look at.

A rule is a function that returns the problems it sees; each is also shown a broken variation, so
that none of them is blind. Nothing here talks to a network.
"""

import contextlib
import io
import ipaddress
import re
import shlex
import socket
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml

from mnist_ray.settings import SearchSettings, check_search, parse

ROOT = Path(__file__).parent.parent.parent
CLUSTER, KUBERAY, PAGE = ROOT / "cluster.yaml", ROOT / "kuberay.yaml", ROOT / "docs" / "cluster.md"

Config = dict[str, Any]
Change = Callable[[Config], object]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a connection fails the test. (No keys either, should somebody look for them.)"""  # noqa: E501

    def refuse(self: socket.socket, address: object) -> None:
        pytest.fail(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def cluster() -> Config:
    return yaml.safe_load(CLUSTER.read_text())


def prepared(config: Config) -> Config:
    """As `ray up` sees it: with Ray's defaults wherever the file says nothing, so that a deleted
    line counts as its default.
    """
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(config)


def test_ray_accepts_the_cluster() -> None:
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared(cluster()))


def test_ray_refuses_a_misspelt_key() -> None:
    import jsonschema
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepared(cluster() | {"idle_timeout_minute": 5}))


def test_the_autoscaler_takes_the_image_of_each_kind() -> None:
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    config = AutoscalingConfig(prepared(cluster()), skip_content_hash=True)
    assert config.get_docker_config("head")["image"].endswith("-cpu")
    assert config.get_docker_config("gpu")["image"].endswith("-gpu")


# ---- rules for cluster.yaml


def node_types(config: Config) -> Iterator[tuple[str, Config]]:
    yield from config["available_node_types"].items()


def workers(config: Config) -> Iterator[tuple[str, Config]]:
    yield from (
        (name, node) for name, node in node_types(config) if name != config["head_node_type"]
    )


def commands(config: Config) -> list[str]:
    return [command for key in config if key.endswith("_commands") for command in config[key]]


def ray_starts(config: Config) -> list[list[str]]:
    parts = [part for command in commands(config) for part in re.split(r";|&&", command)]
    return [shlex.split(part) for part in parts if part.split()[:2] == ["ray", "start"]]


def too_wide(address: str) -> bool:
    return ipaddress.ip_network(address, strict=False).prefixlen < 8


def ssh_open(config: Config) -> list[str]:
    found = [
        f"{name}: without SecurityGroupIds Ray opens SSH to the world"
        for name, node in node_types(config)
        if not node["node_config"].get("SecurityGroupIds")
    ]
    for rule in config["provider"].get("security_group", {}).get("IpPermissions", []):
        ranges = [r["CidrIp"] for r in rule.get("IpRanges", [])] + [
            r["CidrIpv6"] for r in rule.get("Ipv6Ranges", [])
        ]
        found += [f"ingress from {address}" for address in ranges if too_wide(address)]
    return found


def dashboard_open(config: Config) -> list[str]:
    heads = [words for words in ray_starts(config) if "--head" in words]
    found = [] if heads else ["no `ray start --head`"]
    for words in heads:
        hosts = [word.partition("=")[2] for word in words if word.startswith("--dashboard-host=")]
        if not hosts or not all(ipaddress.ip_address(host).is_loopback for host in hosts):
            found.append(f"dashboard on {hosts or 'whatever Ray chooses'}")
    return found


def token_off(config: Config) -> list[str]:
    docker = config["docker"]
    modes = re.findall(
        r"(?:^|\s)(?:-e|--env)[ =]RAY_AUTH_MODE=(\S*)", " ".join(docker.get("run_options", []))
    )
    found = [] if modes == ["token"] else [f"docker run_options: RAY_AUTH_MODE is {modes}"]
    elsewhere = (
        docker.get("head_run_options", []) + docker.get("worker_run_options", []) + commands(config)
    )
    found += [f"sets the mode again: {text}" for text in elsewhere if "RAY_AUTH_MODE" in text]
    if config["file_mounts"].get("/home/ray/.ray/auth_token") != "~/.ray/auth_token":
        found.append("the token is not mounted where Ray looks for it")
    return found


def on_demand(config: Config) -> list[str]:
    return [
        f"{name}: GPU machine that is not on the spot market"
        for name, node in node_types(config)
        if node["resources"].get("GPU")
        and node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") != "spot"
    ]


def head_works(config: Config) -> list[str]:
    head = config["available_node_types"][config["head_node_type"]]
    found = [
        f"the head offers {kind}: {head['resources'].get(kind)}"
        for kind in ("CPU", "GPU")
        if head["resources"].get(kind) != 0
    ]
    if re.match(r"[gp]\d", head["node_config"]["InstanceType"]):
        found.append("the head is a GPU machine")
    return found


def runs_on(config: Config) -> list[str]:
    found = [
        f"{name}: min_workers {node['min_workers']}"
        for name, node in workers(config)
        if node["min_workers"]
    ]
    found += [
        f"{name}: no workers at all" for name, node in workers(config) if not node["max_workers"]
    ]
    if not 0 < config["idle_timeout_minutes"] <= 15:
        found.append(f"idle_timeout_minutes {config['idle_timeout_minutes']}")
    if config["provider"].get("cache_stopped_nodes") is not False:
        found.append("ended machines are kept, with their disks")
    return found


def no_profile(config: Config) -> list[str]:
    profiles = {
        name: str(node["node_config"].get("IamInstanceProfile", ""))
        for name, node in node_types(config)
    }
    found = [f"{name}: no instance profile" for name, profile in profiles.items() if not profile]
    head = profiles.pop(config["head_node_type"])
    return found + [
        f"{name}: has the head's rights"
        for name, profile in profiles.items()
        if profile == head != ""
    ]


def image_problems(image: str, kind: str) -> list[str]:
    minor = ".".join(version("ray").split(".")[:2])
    expected = rf"rayproject/ray:{re.escape(minor)}\.\d+-py3\d\d-{kind}"
    return [] if re.fullmatch(expected, image) else [f"image {image!r} is not {expected}"]


def unpinned(config: Config) -> list[str]:
    docker = config["docker"]
    return image_problems(docker.get("image", ""), "cpu") + image_problems(
        docker.get("worker_image", ""), "gpu"
    )


def foreign_packages(config: Config) -> list[str]:
    # A nightly Ray is in Ray's own defaults; a torch of another build than torchvision's fails on
    # import.
    bad = r"\.whl\b|nightly|ray-wheels|--pre\b|--(?:extra-)?index-url|torch\S*==|\+cpu"
    return [
        f"installs something of another build: {command}"
        for command in commands(config)
        if re.search(bad, command)
    ]


def not_installed(config: Config) -> list[str]:
    found = []
    for key in ("head_setup_commands", "worker_setup_commands"):
        words = [
            word
            for command in config[key]
            if command.startswith("pip install")
            for word in shlex.split(command)
        ]
        if not any(
            config["file_mounts"].get(word.removesuffix("[report]")) == "." for word in words
        ):
            found.append(f"{key}: this project is not installed")
        if not any(word.startswith("ray==$(") for word in words):
            found.append(f"{key}: pip may change the image's Ray")
    return found


def ships_too_much(config: Config) -> list[str]:
    missing = {".git", ".venv", "data", "runs"} - set(config["rsync_exclude"])
    return [f"rsync takes {name}" for name in sorted(missing)] + (
        [] if config["rsync_filter"] == [".gitignore"] else ["rsync takes what git ignores"]
    )


def unknown_to_ec2(config: Config) -> list[str]:
    """node_config is passed to RunInstances as it is and checked by nobody before: ask the API's
    own description.
    """
    import botocore.session
    from botocore.validate import ParamValidator

    shape = (
        botocore.session.get_session()
        .get_service_model("ec2")
        .operation_model("RunInstances")
        .input_shape
    )
    found = []
    for name, node in node_types(config):
        report = ParamValidator().validate(
            {"MinCount": 1, "MaxCount": 1} | node["node_config"], shape
        )
        found += [f"{name}: {report.generate_report()}"] if report.has_errors() else []
    return found


def set_node(name: str, **values: Any) -> Change:
    return lambda config: config["available_node_types"][name]["node_config"].update(values)


def drop_node(name: str, key: str) -> Change:
    return lambda config: config["available_node_types"][name]["node_config"].pop(key)


def world(config: Config) -> None:
    rule = {
        "FromPort": 22,
        "ToPort": 22,
        "IpProtocol": "tcp",
        "IpRanges": [{"CidrIp": "0.0.0.0/0"}],
    }
    config["provider"]["security_group"] = {"IpPermissions": [rule]}


def replace(key: str, old: str, new: str) -> Change:
    def change(config: Config) -> None:
        assert old in str(config[key]), (
            f"{key} no longer has {old!r}: this variation breaks nothing"
        )
        config[key] = yaml.safe_load(yaml.safe_dump(config[key], width=10_000).replace(old, new))

    return change


BROKEN: list[tuple[Callable[[Config], list[str]], Change]] = [
    (ssh_open, world),
    (ssh_open, drop_node("gpu", "SecurityGroupIds")),
    (ssh_open, set_node("head", SecurityGroupIds=[])),
    (dashboard_open, lambda c: c.pop("head_start_ray_commands")),  # Ray's default: 0.0.0.0
    (
        dashboard_open,
        replace(
            "head_start_ray_commands", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"
        ),
    ),
    (dashboard_open, replace("head_start_ray_commands", "--dashboard-host=127.0.0.1", "")),
    (token_off, replace("docker", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled")),
    (token_off, lambda c: c["docker"].pop("run_options")),
    (token_off, lambda c: c["docker"]["worker_run_options"].append("-e RAY_AUTH_MODE=disabled")),
    (token_off, lambda c: c["file_mounts"].pop("/home/ray/.ray/auth_token")),
    (on_demand, drop_node("gpu", "InstanceMarketOptions")),
    (head_works, lambda c: c["available_node_types"]["head"].update(resources={})),
    (head_works, set_node("head", InstanceType="g6.xlarge")),
    (runs_on, lambda c: c["available_node_types"]["gpu"].update(min_workers=1)),
    (runs_on, lambda c: c.update(idle_timeout_minutes=600)),
    (runs_on, lambda c: c["provider"].pop("cache_stopped_nodes")),
    (no_profile, drop_node("gpu", "IamInstanceProfile")),
    (no_profile, drop_node("head", "IamInstanceProfile")),
    (no_profile, set_node("gpu", IamInstanceProfile={"Name": "mnist-ray-head"})),
    (unpinned, lambda c: c["docker"].update(worker_image="rayproject/ray:latest-py311-gpu")),
    (unpinned, lambda c: c["docker"].update(worker_image="rayproject/ray:2.9.0-py311-gpu")),
    (unpinned, lambda c: c["docker"].update(head_image=c["docker"]["image"], image="")),
    (foreign_packages, lambda c: c.pop("setup_commands")),  # Ray's default: a nightly wheel
    (foreign_packages, lambda c: c["setup_commands"].append("pip install torch==2.13.0+cpu")),
    (not_installed, lambda c: c.update(setup_commands=[])),
    (not_installed, replace("setup_commands", "ray==$(", "rich==$(")),
    (not_installed, lambda c: c["file_mounts"].pop("/home/ray/mnist_ray")),
    (ships_too_much, lambda c: c.pop("rsync_exclude")),
    (ships_too_much, lambda c: c.pop("rsync_filter")),
    (unknown_to_ec2, set_node("gpu", InstanceMarketOption={"MarketType": "spot"})),
    (unknown_to_ec2, set_node("gpu", SecurityGroupIds="sg-1")),
]
RULES = list(dict.fromkeys(rule for rule, _ in BROKEN))


@pytest.mark.parametrize("rule", RULES)
def test_the_cluster_keeps_the_rule(rule: Callable[[Config], list[str]]) -> None:
    assert rule(prepared(cluster())) == []


@pytest.mark.parametrize(("rule", "change"), BROKEN)
def test_the_rule_sees_a_broken_cluster(
    rule: Callable[[Config], list[str]], change: Change
) -> None:
    config = cluster()
    change(config)
    assert rule(prepared(config))


def test_ray_leaves_the_firewall_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What ssh_open is about, with Ray's own bootstrap on a simulated AWS: our group stays closed,
    one of Ray's is open.
    """
    boto3 = pytest.importorskip("boto3", reason="boto3 comes with the dev extra")
    moto = pytest.importorskip("moto", reason="moto comes with the dev extra")
    from ray.autoscaler._private.aws import config as ray_aws

    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "simulated")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the key pair to ~/.ssh
    with moto.mock_aws():
        ray_aws.resource_cache.cache_clear()
        ec2 = boto3.client("ec2", "us-west-2")

        def sources(**which: Any) -> set[str]:
            groups = ec2.describe_security_groups(**which)["SecurityGroups"]
            return {
                r["CidrIp"] for g in groups for rule in g["IpPermissions"] for r in rule["IpRanges"]
            }

        group = ec2.create_security_group(GroupName="mnist-ray", Description="mnist_ray")["GroupId"]
        mine = {
            "FromPort": 22,
            "ToPort": 22,
            "IpProtocol": "tcp",
            "IpRanges": [{"CidrIp": "203.0.113.7/32"}],
        }
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[mine])
        config = cluster()
        for _, node in node_types(config):
            node["node_config"]["SecurityGroupIds"] = [group]
        done = ray_aws.bootstrap_aws(prepared(config))
        assert {
            node["node_config"]["IamInstanceProfile"]["Name"] for _, node in node_types(done)
        } == {"mnist-ray-head", "mnist-ray-worker"}
        assert sources() == {"203.0.113.7/32"}

        for _, node in node_types(config):
            del node["node_config"]["SecurityGroupIds"]
        config["provider"]["security_group"] = {"IpPermissions": [mine]}
        ray_aws.bootstrap_aws(prepared(config))
        assert sources() == {"203.0.113.7/32", "0.0.0.0/0"}
        ray_aws.resource_cache.cache_clear()


# ---- rules for the text of the files


def secrets(text: str) -> list[str]:
    kinds = {
        "AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
        "secret key": r"(?i)secret_?access_?key\s*[:=]",
        "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
        "Ray token": r"\b[0-9a-f]{64}\b",
        "password": r"(?i)\bpass(?:word|wd)?\s*[:=]\s*[^\s'\"{$]",
        "token value": r"(?i)\b(?:RAY_AUTH_TOKEN|auth_token|api_key)\s*[:=]\s*[^\s~/$]",
        "keys in a URI": r"\w+://[^\s/@:]+:[^\s/@]+@",
    }
    return [kind for kind, pattern in kinds.items() if re.search(pattern, text)]


@pytest.mark.parametrize("path", [CLUSTER, KUBERAY, PAGE], ids=lambda path: path.name)
def test_no_secret_in(path: Path) -> None:
    assert secrets(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "aws_secret_access_key: x",
        "key: " + "AKIA" + "A" * 16,
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        "ab" * 32,
        "password: hunter2",
        "RAY_AUTH_TOKEN=abc",
        "s3://key:word@bucket/runs",
    ],
)
def test_a_secret_is_seen(text: str) -> None:
    assert secrets(f"env:\n    {text}\n")


# In cluster.yaml `resources` are Ray's bookkeeping, on one line; in kuberay.yaml they are machines,
# on several.
BILLED = (
    "InstanceType",
    "MarketType",
    "VolumeSize",
    "max_workers",
    "min_workers",
    "idle_timeout_minutes",
    "resources",
    "minReplicas",
    "maxReplicas",
    "ttlSecondsAfterFinished",
    "activeDeadlineSeconds",
    "idleTimeoutSeconds",
)


def unmarked(text: str) -> list[str]:
    """The lines that cost money without saying so."""
    lines = [line for line in text.splitlines() if line.strip().split(":")[0] in BILLED]
    return [line for line in lines if "# COSTS: " not in line and "resources: {" not in line]


@pytest.mark.parametrize("path", [CLUSTER, KUBERAY], ids=lambda path: path.name)
def test_what_costs_money_says_so(path: Path) -> None:
    text = path.read_text()
    assert unmarked(text) == []
    assert len(unmarked(text.replace("# COSTS: ", "# "))) == text.count("# COSTS: ")


def open_addresses(shell: str) -> list[str]:
    return [
        a
        for a in re.findall(r"(?:MY_ADDRESS=|--cidr[ =])\"?([0-9a-fA-F.:]+/\d+)", shell)
        if too_wide(a)
    ]


def test_the_page_opens_ssh_to_one_address_only() -> None:
    text = PAGE.read_text()
    assert re.search(r"MY_ADDRESS=\d", text)
    assert open_addresses(text) == []
    assert open_addresses(re.sub(r"MY_ADDRESS=\S+", "MY_ADDRESS=0.0.0.0/0", text)) == ["0.0.0.0/0"]
    assert open_addresses("--cidr ::/0") == ["::/0"]


def search_commands(text: str) -> list[list[str]]:
    lines = re.sub(r"\\\n[ #]*", " ", text)
    return [
        shlex.split(flags, comments=True)
        for flags in re.findall(r"python jobs/search\.py([^\n`]*)", lines)
    ]


def test_the_commands_are_ones_that_search_takes() -> None:
    entrypoint = yaml.safe_load(KUBERAY.read_text())["spec"]["entrypoint"]
    found = [
        *search_commands(entrypoint),
        *search_commands(PAGE.read_text()),
        *search_commands(CLUSTER.read_text()),
    ]
    assert len(found) == 5
    for flags in found:
        settings = parse(SearchSettings, flags)
        check_search(settings)
        assert settings.storage.startswith("s3://YOUR-BUCKET/")


def test_the_page_calculates_what_it_says() -> None:
    match = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert match
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(match[1], str(PAGE), "exec"), {})
    assert output.getvalue() == match[2]


# ---- kuberay.yaml

STRINGS = dict[str, str]

# The fields of ray.io/v1, from "KubeRay CRD API reference" (docs.ray.io,
# cluster/kubernetes/references/api, KubeRay 1.7.0; its source is docs/reference/api.md of
# ray-project/kuberay), and of the pod those that are used here, from the Kubernetes API reference
# v1.28. A string names the type of the value.
FIELDS: dict[str, dict[str, Any]] = {
    "RayJob": {"apiVersion": str, "kind": str, "metadata": dict, "spec": "RayJobSpec"},
    "RayJobSpec": {
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "rayClusterSpec": "RayClusterSpec",
        "submitterPodTemplate": dict,
        "metadata": dict,
        "clusterSelector": STRINGS,
        "submitterConfig": dict,
        "managedBy": str,
        "deletionStrategy": dict,
        "entrypoint": str,
        "runtimeEnvYAML": str,
        "jobId": str,
        "submissionMode": str,
        "entrypointResources": str,
        "entrypointNumCpus": float,
        "entrypointNumGpus": float,
        "ttlSecondsAfterFinished": int,
        "preRunningDeadlineSeconds": int,
        "shutdownAfterJobFinishes": bool,
        "suspend": bool,
    },
    "RayClusterSpec": {
        "upgradeStrategy": dict,
        "authOptions": "AuthOptions",
        "suspend": bool,
        "managedBy": str,
        "autoscalerOptions": "AutoscalerOptions",
        "headServiceAnnotations": STRINGS,
        "enableInTreeAutoscaling": bool,
        "gcsFaultToleranceOptions": dict,
        "historyServerOptions": dict,
        "networkPolicy": dict,
        "tlsOptions": dict,
        "headGroupSpec": "HeadGroupSpec",
        "rayVersion": str,
        "workerGroupSpecs": "WorkerGroupSpec",
    },
    "AuthOptions": {"enableK8sTokenAuth": bool, "secretName": str, "mode": str},
    "AutoscalerOptions": {
        "resources": dict,
        "image": str,
        "imagePullPolicy": str,
        "securityContext": dict,
        "idleTimeoutSeconds": int,
        "upscalingMode": str,
        "version": str,
        "env": list,
        "envFrom": list,
        "volumeMounts": list,
        "command": list,
        "args": list,
    },
    "HeadGroupSpec": {
        "template": "PodTemplateSpec",
        "headService": dict,
        "enableIngress": bool,
        "ingressOptions": dict,
        "resources": STRINGS,
        "labels": STRINGS,
        "rayStartParams": STRINGS,
        "serviceType": str,
    },
    "WorkerGroupSpec": {
        "suspend": bool,
        "groupName": str,
        "replicas": int,
        "minReplicas": int,
        "maxReplicas": int,
        "idleTimeoutSeconds": int,
        "priority": int,
        "resources": STRINGS,
        "labels": STRINGS,
        "rayStartParams": STRINGS,
        "template": "PodTemplateSpec",
        "scaleStrategy": dict,
        "numOfHosts": int,
    },
    "PodTemplateSpec": {"metadata": dict, "spec": "PodSpec"},
    "PodSpec": {
        "serviceAccountName": str,
        "nodeSelector": STRINGS,
        "tolerations": "Toleration",
        "containers": "Container",
    },
    "Toleration": {
        "key": str,
        "operator": str,
        "effect": str,
        "value": str,
        "tolerationSeconds": int,
    },
    "Container": {"name": str, "image": str, "resources": "ResourceRequirements", "env": list},
    "ResourceRequirements": {"limits": dict, "requests": dict},
}
# Fields without a default in KubeRay's Go types, and those that a RayJob with a cluster of its own
# cannot do without.
REQUIRED = {
    "RayJob": {"apiVersion", "kind", "metadata", "spec"},
    "RayJobSpec": {"entrypoint", "rayClusterSpec"},
    "RayClusterSpec": {"headGroupSpec", "rayVersion"},
    "HeadGroupSpec": {"template"},
    "WorkerGroupSpec": {"groupName", "template"},
    "PodTemplateSpec": {"spec"},
    "PodSpec": {"containers"},
    "Container": {"name", "image"},
}


def undocumented(value: Any, kind: str = "RayJob", where: str = "") -> list[str]:
    """Fields that the API does not know, that are missing, or whose value is of another type than
    the reference says.
    """
    if isinstance(value, list):
        return [
            problem
            for i, one in enumerate(value)
            for problem in undocumented(one, kind, f"{where}[{i}]")
        ]
    if not isinstance(value, dict):
        return [f"{where}: {value!r} is not a {kind}"]
    found = [f"{where}.{name}: missing" for name in sorted(REQUIRED.get(kind, set()) - set(value))]
    for name, inner in value.items():
        expected, here = FIELDS[kind].get(name), f"{where}.{name}"
        if expected is None:
            found.append(f"{here}: unknown to {kind}")
        elif isinstance(expected, str):
            found += undocumented(inner, expected, here)
        elif expected is STRINGS:
            found += [
                f"{here}.{k}: {v!r} is not a string"
                for k, v in inner.items()
                if not isinstance(v, str)
            ]
        elif type(inner) is not expected:
            found.append(f"{here}: {inner!r} is not {expected.__name__}")
    return found


def groups(manifest: Config) -> list[Config]:
    spec = manifest["spec"]["rayClusterSpec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def kube_token_off(manifest: Config) -> list[str]:
    spec = manifest["spec"]["rayClusterSpec"]
    env = [
        entry["name"]
        for g in groups(manifest)
        for c in g["template"]["spec"]["containers"]
        for entry in c.get("env", [])
    ]
    mode = spec.get("authOptions", {}).get("mode")
    return ([] if mode == "token" else [f"authOptions.mode: {mode}"]) + [
        f"env {n}" for n in env if n.startswith("RAY_AUTH")
    ]


def kube_head_works(manifest: Config) -> list[str]:
    head = groups(manifest)[0]
    params = head.get("rayStartParams", {})
    found = [
        f"the head's {name}: {params.get(name)}"
        for name in ("num-cpus", "num-gpus")
        if params.get(name) != "0"
    ]
    return found + ["the head has a GPU"] * ("nvidia.com/gpu" in str(head["template"]))


def kube_runs_on(manifest: Config) -> list[str]:
    spec = manifest["spec"]
    found = [
        f"{g['groupName']}: {key} {g.get(key)}"
        for g in groups(manifest)[1:]
        for key in ("replicas", "minReplicas")
        if g.get(key) != 0
    ]
    found += [
        f"{g['groupName']}: no maxReplicas"
        for g in groups(manifest)[1:]
        if not g.get("maxReplicas")
    ]
    found += ["the cluster outlives its job"] * (spec.get("shutdownAfterJobFinishes") is not True)
    found += ["no ttlSecondsAfterFinished"] * ("ttlSecondsAfterFinished" not in spec)
    found += ["no activeDeadlineSeconds"] * ("activeDeadlineSeconds" not in spec)
    return found + ["no autoscaling"] * (
        spec["rayClusterSpec"].get("enableInTreeAutoscaling") is not True
    )


def kube_no_gpu(manifest: Config) -> list[str]:
    return [
        f"{g['groupName']}: no GPU in limits"
        for g in groups(manifest)[1:]
        if not g["template"]["spec"]["containers"][0]
        .get("resources", {})
        .get("limits", {})
        .get("nvidia.com/gpu")
    ]


def kube_exposed(manifest: Config) -> list[str]:
    head = groups(manifest)[0]
    return [f"serviceType {head.get('serviceType')}"] * (head.get("serviceType") != "ClusterIP") + (
        ["an ingress"] * bool(head.get("enableIngress"))
    )


def kube_no_role(manifest: Config) -> list[str]:
    return [
        "a pod without serviceAccountName"
        for g in groups(manifest)
        if not g["template"]["spec"].get("serviceAccountName")
    ]


def kube_unpinned(manifest: Config) -> list[str]:
    images = [g["template"]["spec"]["containers"][0]["image"] for g in groups(manifest)]
    found = image_problems(images[0], "cpu") + [
        p for image in images[1:] for p in image_problems(image, "gpu")
    ]
    ray = manifest["spec"]["rayClusterSpec"]["rayVersion"]
    return found + [
        f"rayVersion {ray}, image {i}" for i in images if not i.startswith(f"rayproject/ray:{ray}-")
    ]


def kube_runtime_env(manifest: Config) -> list[str]:
    from ray.runtime_env import RuntimeEnv

    spec = manifest["spec"]
    try:
        env = RuntimeEnv(**yaml.safe_load(spec["runtimeEnvYAML"]))
    except (TypeError, ValueError) as error:
        return [str(error)]
    found = (
        []
        if str(env.get("working_dir")).endswith(".zip")
        else ["working_dir is not an archive that the nodes can fetch"]
    )
    packages = env.get("pip", {}).get("packages", [])
    found += (
        []
        if packages == ["${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}[report]"]
        else [f"pip {packages}: the project is not installed"]
    )
    # K8sJobMode and SidecarMode put the JSON in double quotes into a shell command (kuberay,
    # controllers/ray/common/job.go).
    return found + ["a shell would expand ${...}"] * (spec.get("submissionMode") != "HTTPMode")


def spec(**values: Any) -> Change:
    return lambda manifest: manifest["spec"].update(values)


def ray(**values: Any) -> Change:
    return lambda manifest: manifest["spec"]["rayClusterSpec"].update(values)


def group(index: int, **values: Any) -> Change:
    return lambda manifest: groups(manifest)[index].update(values)


def pod(index: int, **values: Any) -> Change:
    return lambda manifest: groups(manifest)[index]["template"]["spec"].update(values)


KUBE_BROKEN: list[tuple[Callable[[Config], list[str]], Change]] = [
    (undocumented, spec(ttlSecondsAfterFinish=60)),
    (undocumented, ray(authOption={"mode": "token"})),
    (undocumented, ray(authOptions={"mode": "token", "token": "x"})),
    (undocumented, group(0, rayStartParams={"num-cpus": 0})),
    (undocumented, group(1, maxReplicas="8")),
    (undocumented, group(1, maxWorkers=8)),
    (undocumented, pod(0, serviceAccount_name="mnist-ray")),
    (undocumented, lambda m: m["spec"].pop("entrypoint")),
    (undocumented, lambda m: m["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName")),
    (kube_token_off, ray(authOptions={"mode": "disabled"})),
    (kube_token_off, lambda m: m["spec"]["rayClusterSpec"].pop("authOptions")),
    (
        kube_token_off,
        lambda m: groups(m)[1]["template"]["spec"]["containers"][0].update(
            env=[{"name": "RAY_AUTH_MODE"}]
        ),
    ),
    (kube_head_works, group(0, rayStartParams={"num-gpus": "0"})),
    (kube_head_works, lambda m: groups(m)[0].update(template=groups(m)[1]["template"])),
    (kube_runs_on, group(1, minReplicas=1)),
    (kube_runs_on, spec(shutdownAfterJobFinishes=False)),
    (kube_runs_on, lambda m: m["spec"].pop("activeDeadlineSeconds")),
    (kube_runs_on, ray(enableInTreeAutoscaling=False)),
    (kube_no_gpu, lambda m: groups(m)[1].update(template=groups(m)[0]["template"])),
    (kube_exposed, group(0, serviceType="LoadBalancer")),
    (kube_exposed, group(0, enableIngress=True)),
    (kube_no_role, pod(0, serviceAccountName=None)),
    (kube_no_role, pod(1, serviceAccountName="")),
    (kube_unpinned, ray(rayVersion="2.59.0")),
    (
        kube_unpinned,
        pod(1, containers=[{"name": "ray-worker", "image": "rayproject/ray:nightly-gpu"}]),
    ),
    (kube_runtime_env, spec(submissionMode="K8sJobMode")),
    (kube_runtime_env, spec(runtimeEnvYAML="working_dir: s3://YOUR-BUCKET/code/mnist_ray.zip")),
    (kube_runtime_env, spec(runtimeEnvYAML="pip: [torch]")),
    (kube_runtime_env, spec(runtimeEnvYAML="pip: 3")),
]
KUBE_RULES = list(dict.fromkeys(rule for rule, _ in KUBE_BROKEN))


@pytest.mark.parametrize("rule", KUBE_RULES)
def test_the_rayjob_keeps_the_rule(rule: Callable[[Config], list[str]]) -> None:
    manifest = yaml.safe_load(KUBERAY.read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert rule(manifest) == []


@pytest.mark.parametrize(("rule", "change"), KUBE_BROKEN)
def test_the_rule_sees_a_broken_rayjob(rule: Callable[[Config], list[str]], change: Change) -> None:
    manifest = yaml.safe_load(KUBERAY.read_text())
    change(manifest)
    assert rule(manifest)


# ---- what `ray job submit --working-dir .` ships


def package(folder: Path, archive: Path, include_gitignore: bool = True) -> set[str]:
    """The files of the archive that Ray's job client makes of a folder, by the functions that it
    uses.
    """
    from ray._private.runtime_env.packaging import create_package
    from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

    def upload(working_dir: str, excludes: list[str] | None = None, is_file: bool = False) -> None:
        create_package(working_dir, archive, include_gitignore=include_gitignore, excludes=excludes)

    upload_working_dir_if_needed(
        {"working_dir": str(folder)}, include_gitignore=include_gitignore, upload_fn=upload
    )
    return {name for name in ZipFile(archive).namelist() if not name.endswith("/")}


def test_the_package_is_small_and_whole(tmp_path: Path) -> None:
    names = package(ROOT, tmp_path / "package.zip")
    assert (tmp_path / "package.zip").stat().st_size < 2_000_000
    code = {
        str(p.relative_to(ROOT))
        for folder in ("jobs", "mnist_ray")
        for p in (ROOT / folder).rglob("*.py")
    }
    assert "mnist_ray/__init__.py" in code
    assert (
        code | {"pyproject.toml", "README.md"} <= names
    )  # the last two for `pip install` of the working directory
    assert not {name.split("/")[0] for name in names} & {
        ".git",
        ".venv",
        "data",
        "runs",
        "tests",
        "docs",
    }


@pytest.mark.parametrize("include_gitignore", [True, False])
def test_the_heavy_stays_at_home(include_gitignore: bool, tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    heavy = [
        ".git/objects/pack",
        ".venv/lib/big.so",
        "data/MNIST/raw/images",
        "runs/first/run.json",
        "dist/a.whl",
    ]
    for name in [
        "jobs/search.py",
        "mnist_ray/data.py",
        "jobs/recipes/a.yaml",
        "model.onnx",
        *heavy,
    ]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for name in (".gitignore", ".rayignore"):
        (folder / name).write_text((ROOT / name).read_text())
    names = package(folder, tmp_path / "package.zip", include_gitignore)
    assert {"jobs/search.py", "mnist_ray/data.py", "jobs/recipes/a.yaml", "model.onnx"} <= names
    assert not names & set(heavy)
