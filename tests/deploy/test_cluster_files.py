"""deploy/ray and deploy/door say what the replicas, the door and HAProxy take."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud.cluster.door import read_door
from cloud.cluster.door_config import DoorFiles, door_config
from cloud.cluster.settings import read_replicas, replica_config
from protos.addresses import Address
from protos.metadata import PREFIX_KEY, SESSION_KEY
from tests.cloud.cluster.haproxy import HAPROXY, WHY_NOT
from tests.deploy.dockerfile import DEPLOY
from tests.tls_keys import make_keys, needs_openssl

SERVE = yaml.safe_load((DEPLOY / "ray/serve.yaml").read_text())
KUBERAY = list(yaml.safe_load_all((DEPLOY / "ray/kuberay.yaml").read_text()))
SERVICE = next(one for one in KUBERAY if one["kind"] == "RayService")["spec"]
FILES = {"serve": SERVE, "kuberay": yaml.safe_load(SERVICE["serveConfigV2"])}


def arguments(name: str, application: str) -> dict[str, Any]:
    (found,) = (one for one in FILES[name]["applications"] if one["name"] == application)
    module, _, attribute = found["import_path"].partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    assert f"def {attribute}(" in Path(spec.origin).read_text()
    return dict(found["args"])


@pytest.mark.parametrize("name", FILES)
def test_the_replicas_and_the_door_take_what_the_file_says(name: str) -> None:
    replicas = read_replicas(arguments(name, "splitpoint"))
    door = read_door(arguments(name, "splitpoint-door"))
    assert door.most_replicas == replicas.scaling.most
    assert door.replicas_ca is not None
    config = replica_config(replicas, name="r", node_address="10.0.0.2")
    config.access.check(config.host)  # neither is open to everybody
    door.access.check(door.host)
    assert FILES[name]["proxy_location"] == "Disabled"


def test_the_head_of_kubernetes_has_the_door_and_the_service_finds_it() -> None:
    head = SERVICE["rayClusterConfig"]["headGroupSpec"]
    assert "splitpoint_door" in head["rayStartParams"]["resources"]
    (container,) = head["template"]["spec"]["containers"]
    (service,) = (one for one in KUBERAY if one["kind"] == "Service")
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] in {one["name"] for one in container["ports"]}
    drain_s = arguments("kuberay", "splitpoint")["drain_s"]
    (workers,) = SERVICE["rayClusterConfig"]["workerGroupSpecs"]
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] > drain_s


def test_clients_reach_the_door_of_kubernetes_alone() -> None:
    """Ray's ports run whatever is sent to them, and replicas believe x-forwarded-for."""
    (policy,) = (one for one in KUBERAY if one["kind"] == "NetworkPolicy")
    (service,) = (one for one in KUBERAY if one["kind"] == "Service")
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    (workers,) = SERVICE["rayClusterConfig"]["workerGroupSpecs"]
    for pods in (SERVICE["rayClusterConfig"]["headGroupSpec"], workers):
        assert pods["template"]["metadata"]["labels"] == chosen
    assert "Ingress" in policy["spec"]["policyTypes"]
    open_to_all = [rule for rule in policy["spec"]["ingress"] if "from" not in rule]
    assert open_to_all == [{"ports": [{"port": "door"}]}]
    # Not Ray's own label for heads with a proxy: there is no proxy.
    assert service["spec"]["selector"] == {**chosen, "ray.io/node-type": "head"}


def haproxy_lines(text: str, section: str) -> set[str]:
    """What a section of a configuration says, without comments."""
    found = re.search(rf"^{section}\b.*\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    assert found is not None
    lines = (line.strip() for line in found[1].splitlines())
    return {line for line in lines if line and not line.startswith("#")}


def test_the_example_of_haproxy_says_what_splitpoints_own_says() -> None:
    example = (DEPLOY / "door/haproxy.cfg").read_text()
    own = door_config(
        Address("0.0.0.0", 50051),
        DoorFiles(folder=Path("/door"), certificate=Path("/etc/haproxy/door.pem")),
        num_slots=1,
        streams=512,
    )
    assert haproxy_lines(example, "defaults") == haproxy_lines(own, "defaults")
    window = "tune.h2.fe.initial-window-size 1048576"
    assert window in haproxy_lines(example, "global") & haproxy_lines(own, "global")
    # The example has no replicas with names.
    told = {one for one in haproxy_lines(own, "frontend door") if "http-request" in one}
    told = {one for one in told if "x-replica" not in one}
    assert told == {one for one in haproxy_lines(example, "frontend door") if "http-req" in one}
    names = re.findall(r"verifyhost (\S+)", example)
    assert names == ["servers"]  # else any certificate of that authority would do
    assert "--behind-proxy" in example


def test_envoy_hashes_on_what_the_edge_sends() -> None:
    envoy = yaml.safe_load((DEPLOY / "door/envoy.yaml").read_text())["static_resources"]
    (chain,) = envoy["listeners"][0]["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    hashed = [one["header"]["header_name"] for one in route["route"]["hash_policy"]]
    assert hashed == [PREFIX_KEY, SESSION_KEY]
    assert route["route"]["timeout"] == "0s"
    (cluster,) = envoy["clusters"]
    assert cluster["lb_policy"] == "RING_HASH"
    assert route["route"]["cluster"] == cluster["name"]


@needs_openssl
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_haproxy_takes_the_example(tmp_path: Path) -> None:
    keys = make_keys(tmp_path, "door")
    (tmp_path / "door.pem").write_bytes(keys.cert.read_bytes() + keys.key.read_bytes())
    shutil.copy(keys.ca, tmp_path / "ca.pem")
    text = (DEPLOY / "door/haproxy.cfg").read_text()
    assert {PREFIX_KEY, SESSION_KEY} <= set(re.findall(r"req\.hdr\(([\w-]+)\)", text))
    config = tmp_path / "haproxy.cfg"
    config.write_text(text.replace("/etc/haproxy", str(tmp_path)))
    check = [str(HAPROXY), "-c", "-f", str(config)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
