"""The files that start clusters, against the schemas of their readers, and what latentlake needs of them."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from schemas import __version__
from schemas.run.file import load_run_file

ROOT = Path(__file__).parents[1]
LAUNCHED = ["cluster.yaml", "deploy/gcp.yaml", "deploy/onprem.yaml"]
RAYJOB = "deploy/rayjob.yaml"
CRD = "LATENTLAKE_RAYJOB_CRD"
"""Names KubeRay's CRD, if it is at hand: its ray-operator/config/crd/bases/ray.io_rayjobs.yaml."""
IMAGE = f"example/latentlake:{__version__}"


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def check(config):
    """By Ray's own code and schema (private, so here alone); nothing is asked of a cloud."""
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    validate_config(prepare_config(copy.deepcopy(config)))


@pytest.mark.parametrize("name", LAUNCHED)
def test_rays_launcher_takes_the_file(name):
    check(read(name))


@pytest.mark.parametrize(
    ("place", "value"),
    [(("autoscaling_mode",), "default"), (("available_node_types", "head", "resources"), {"GPU": 0.5})],
)
def test_rays_launcher_refuses_what_it_does_not_know(place, value):
    config = read("cluster.yaml")
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(config)


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_token_is_on_every_node_and_requested_in_every_start(name):
    config = read(name)
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        starts = [command for command in commands if "ray start" in command]
        assert len(starts) == 1
        assert "RAY_AUTH_MODE=token ray start" in starts[0]
        assert "--object-store-memory=" in starts[0]


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_head_takes_no_gpu_worker_and_its_dashboard_is_not_open(name):
    config = read(name)
    start = " ".join(config["head_start_ray_commands"])
    assert "--num-gpus=0" in start
    assert "--dashboard-host=127.0.0.1" in start
    types = config.get("available_node_types", {})
    assert types.get("head", {"resources": {"GPU": 0}})["resources"]["GPU"] == 0


def pods(job):
    cluster = job["spec"]["rayClusterSpec"]
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    return [*(group["template"]["spec"] for group in groups), job["spec"]["submitterPodTemplate"]["spec"]]


def rayjob_schema():
    return read("tests/data/rayjob.schema.yaml")


def test_the_rayjob_has_kuberays_fields():
    jsonschema.Draft202012Validator.check_schema(rayjob_schema())
    jsonschema.validate(read(RAYJOB), rayjob_schema())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: job["spec"].update(entryPoint="x"), "entryPoint"),
        (
            lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update(port=1),
            "string",
        ),
        (lambda job: pods(job)[1].update(terminationGracePeriod=1), "terminationGracePeriod"),
    ],
)
def test_a_field_that_kuberay_does_not_know_is_refused(change, message):
    job = read(RAYJOB)
    change(job)
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(job, rayjob_schema())


def closed(schema):
    """A CRD's schema that refuses unknown fields, as `kubectl apply` does; a server would prune them."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if result.get("type") == "object" and "properties" in result:
        result.setdefault("additionalProperties", result.get("x-kubernetes-preserve-unknown-fields", False))
    return result


def crd_schema(text):
    """The schema of `ray.io/v1` in a CustomResourceDefinition."""
    crd = next(each for each in yaml.safe_load_all(text) if each)
    (version,) = (each for each in crd["spec"]["versions"] if each["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


@pytest.mark.skipif(CRD not in os.environ, reason=f"{CRD} names no file of KubeRay's CRD of RayJob")
def test_kuberays_own_crd_takes_the_rayjob():
    jsonschema.validate(read(RAYJOB), crd_schema(Path(os.environ[CRD]).read_text()))


def test_a_crd_refuses_fields_that_it_does_not_name():
    spec = {"type": "object", "properties": {"entrypoint": {"type": "string"}}}
    root = {"type": "object", "properties": {"kind": {}, "metadata": {}, "spec": spec}}
    versions = [{"name": name, "schema": {"openAPIV3Schema": root}} for name in ("v1", "v1alpha1")]
    schema = crd_schema(yaml.safe_dump_all([None, {"spec": {"versions": versions}}]))
    jsonschema.validate({"kind": "RayJob", "metadata": {"name": "x"}, "spec": {"entrypoint": "y"}}, schema)
    with pytest.raises(jsonschema.ValidationError, match="entryPoint"):
        jsonschema.validate({"kind": "RayJob", "spec": {"entryPoint": "y"}}, schema)


def test_the_rayjob_asks_for_a_token_and_names_the_ray_that_was_tested():
    cluster = read(RAYJOB)["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    (version,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert cluster["rayVersion"] == version


def test_every_volume_of_the_rayjob_is_there():
    for pod in pods(read(RAYJOB)):
        mounted = {
            mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])
        }
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}


def test_no_pod_runs_as_root_or_can_become_it():
    for pod in pods(read(RAYJOB)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            wanted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert container["securityContext"] == wanted


def dockerfile():
    """Its commands, without comments."""
    lines = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def test_nobody_becomes_root_in_the_image_whose_base_has_a_full_version():
    assert "sudo" not in dockerfile()
    assert dockerfile().rstrip().splitlines()[-3] == "USER ${USER_ID}"
    assert re.search(
        r"^ARG BASE_IMAGE=python:3\.11\.\d+-slim-\w+\nFROM \$\{BASE_IMAGE\}$", dockerfile(), re.MULTILINE
    )


def test_the_image_installs_all_but_torch_by_hashes():
    assert (
        "pip install --no-cache-dir --no-deps --require-hashes --requirement requirements.txt" in dockerfile()
    )
    checked = 'pip install --no-index "latentlake[run,ray]" && pip check'  # fails where a package is missing
    assert f"pip install --no-cache-dir --no-deps . && {checked}" in dockerfile()
    assert "constraint constraints.txt ${TORCH_ARGS} torch" in dockerfile()


@pytest.fixture(scope="module")
def lock():
    """deploy/lock.py."""
    spec = importlib.util.spec_from_file_location("lock", ROOT / "deploy/lock.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_the_locked_file_is_what_constraints_and_dependencies_say(lock):
    versions = lock.pinned()
    text = lock.OUT.read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", text, re.MULTILINE))
    assert locked == {name: versions[name] for name in lock.needed()}  # else run `make lock`
    assert not {name for name in locked if name.startswith(lock.OF_TORCH)}
    entries = re.split(r"^(?=[a-z])", text.removeprefix(lock.HEAD), flags=re.MULTILINE)[1:]
    assert len(entries) == len(locked)
    for entry in entries:
        assert re.fullmatch(r"\S+ \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n?){1,2}", entry), entry
    assert "://" not in text


def test_each_machine_that_has_another_file_has_its_hash(lock):
    def of(name, version, sha256):
        return {
            "metadata": {"name": name, "version": version},
            "download_info": {"archive_info": {"hashes": {"sha256": sha256}}},
        }

    text = lock.lock([[of("A_b", "1", "11"), of("c", "2", "33")], [of("A_b", "1", "22"), of("c", "2", "33")]])
    assert text == lock.HEAD + (
        "a-b==1 \\\n    --hash=sha256:11 \\\n    --hash=sha256:22\nc==2 \\\n    --hash=sha256:33\n"
    )


def test_all_files_name_the_image_that_the_dockerfile_builds():
    images = {read(name)["docker"]["image"] for name in LAUNCHED}
    images |= {container["image"] for pod in pods(read(RAYJOB)) for container in pod["containers"]}
    assert images == {IMAGE}
    assert f"-t {IMAGE} ." in (ROOT / "deploy/Dockerfile").read_text()


def test_the_image_copies_what_the_package_is_made_of():
    copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert {
        "pyproject.toml",
        "constraints.txt",
        "deploy/requirements.txt",
        "README.md",
        "LICENSE",
        "latentlake.py",
        "schemas",
        "pipeline",
        "jobs",
    } == names
    assert all((ROOT / name).exists() for name in names)


def test_the_example_for_a_cluster_is_a_run_file():
    run = load_run_file(ROOT / "examples/cluster.yaml")
    assert run.extract.gpus_per_worker == 1
    assert Path(run.store.root).is_absolute()


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "deploy/README.md").read_text())
    assert links
    assert all((ROOT / "deploy" / link).exists() for link in links)
