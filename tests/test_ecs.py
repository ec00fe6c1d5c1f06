"""The ECS example: what AWS's own SDK would refuse, and what stafette would."""

import json
import os
import re
import subprocess
from pathlib import Path

import botocore.session
import botocore.validate
import pytest

from stafette.platform.config import load

FOLDER = Path(__file__).parents[1] / "examples/ecs"
OPERATIONS = {"task": "RegisterTaskDefinition", "service": "CreateService"}
PLACES = {
    "ACCOUNT": "123456789012",
    "REGION": "eu-west-1",
    "SUBNET": "subnet-0a1b2c3d",
    "SECURITY_GROUP": "sg-0a1b2c3d",
    "HEAD_SERVICE": "srv-utcrh6wavdkggqtk",
    "TARGET_GROUP": "0123456789abcdef",
    "FILE_SYSTEM": "fs-0a1b2c3d",
}


def fill(name: str, **places: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **places}
    command = [FOLDER / "fill.sh", FOLDER / name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def filled(name: str) -> dict:
    done = fill(name, **PLACES)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def ecs():
    return botocore.session.Session().get_service_model("ecs")


@pytest.mark.parametrize("kind", OPERATIONS)
@pytest.mark.parametrize("who", ["head", "gpu"])
def test_the_sdk_takes_it(ecs, who, kind):
    shape = ecs.operation_model(OPERATIONS[kind]).input_shape

    report = botocore.validate.ParamValidator().validate(filled(f"{who}-{kind}.json"), shape)

    assert not report.has_errors(), report.generate_report()


def test_the_sdk_would_refuse_a_wrong_one(ecs):
    shape = ecs.operation_model("RegisterTaskDefinition").input_shape
    wrong = filled("gpu-task.json") | {"containerDefinition": []}

    assert botocore.validate.ParamValidator().validate(wrong, shape).has_errors()


@pytest.mark.parametrize("who", ["head", "gpu"])
def test_a_service_runs_its_task_and_names_its_container(who):
    task, service = filled(f"{who}-task.json"), filled(f"{who}-service.json")
    (container,) = task["containerDefinitions"]

    assert service["taskDefinition"] == task["family"]
    assert task["requiresCompatibilities"] == [service["launchType"]]
    for target in service.get("loadBalancers", []):
        assert target["containerName"] == container["name"]
        assert target["containerPort"] in [
            port["containerPort"] for port in container["portMappings"]
        ]


def test_the_tasks_offer_what_the_fleet_asks_for():
    config = load(FOLDER / "fleet.yaml").config
    offered = {}
    for who in ("head", "gpu"):
        command = " ".join(filled(f"{who}-task.json")["containerDefinitions"][0]["command"])
        offered |= json.loads(re.search(r"--resources=(\{.*?\})", command)[1])

    wanted = [*(pool.resources for pool in config.pools.values()), config.frontend.resources]
    assert {name for one in wanted for name in one} == offered.keys()


def test_what_is_not_given_is_named():
    done = fill("gpu-task.json", ACCOUNT="123456789012")

    assert done.returncode == 1
    assert "needs REGION FILE_SYSTEM in the environment" in done.stderr
    assert not done.stdout
