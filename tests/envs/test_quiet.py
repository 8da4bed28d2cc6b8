"""Importing and running says nothing, and loads no more than it needs."""

import json
import logging
import os
import subprocess
import sys

import pytest

from asd_policy.envs.simulator import quiet_robosuite

PROGRAM = """
import json, os, sys
import asd_policy
registered = sorted(sys.modules)
import gymnasium as gym
env = gym.make("asd_policy/Lift-v0")
env.reset(seed=0)
env.step(env.action_space.sample())
env.close()
with open(sys.argv[1], "w") as file:
    json.dump({"registered": registered, "stepped": sorted(sys.modules),
               "MUJOCO_GL": os.environ.get("MUJOCO_GL")}, file)
"""


@pytest.fixture(scope="module", params=[None, "glfw"])
def ran(request, tmp_path_factory):
    """The program's output, what it reports of itself, and the MUJOCO_GL it was given."""
    report = tmp_path_factory.mktemp("quiet") / "report.json"
    environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    if request.param is not None:
        environment["MUJOCO_GL"] = request.param
    program = [sys.executable, "-c", PROGRAM, report]
    result = subprocess.run(program, capture_output=True, text=True, check=True, env=environment)
    return result, json.loads(report.read_text()), request.param


def test_a_step_from_nothing_prints_nothing(ran):
    result, _, _ = ran
    assert (result.stdout, result.stderr) == ("", "")


def test_registration_does_not_load_the_simulator_nor_a_step_opengl(ran):
    _, report, _ = ran
    assert "asd_policy.envs.registration" in report["registered"]
    assert not {"robosuite", "mujoco"} & set(report["registered"])
    assert "robosuite" in report["stepped"]
    assert not [name for name in report["stepped"] if name.split(".")[0] == "OpenGL"]


def test_the_users_choice_of_opengl_survives_robosuite(ran):
    _, report, asked = ran
    assert report["MUJOCO_GL"] == asked


def test_errors_pass_and_outside_everything_does(caplog):
    logger = logging.getLogger("robosuite_logs")
    with quiet_robosuite():
        logger.warning("a notice")
        logger.error("an error")
    logger.warning("a warning of the user's own business")
    assert [record.message for record in caplog.records] == [
        "an error",
        "a warning of the user's own business",
    ]
