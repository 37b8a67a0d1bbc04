"""``fastcfg info`` and what the command line says of itself."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import fastcfg
from fastcfg.cli.app import app

runner = CliRunner()


def test_info_json() -> None:
    result = runner.invoke(app, ["info", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["fastcfg"] == fastcfg.__version__
    assert found["packages"]["torch"] and "tensorrt" in found["packages"]
    assert found["devices"][0].startswith("cpu")
    rows = {(row["name"], row["device"]): row for row in found["backends"]}
    assert rows["torch", "any"]["usable"]
    assert ("cpp", "cpu") in rows and ("triton row", "cuda") in rows and ("triton two_launch", "cpu") in rows
    assert all(row["usable"] or row["reason"] for row in found["backends"]), "what is not usable says why not"


def test_info_table() -> None:
    result = runner.invoke(app, ["info"])
    assert result.exit_code == 0, result.output
    assert "torch" in result.output and "backends" in result.output and fastcfg.__version__ in result.output


@pytest.mark.parametrize("command", [[], ["info"], ["demo"]])
def test_help(command: list[str]) -> None:
    result = runner.invoke(app, [*command, "--help"])
    assert result.exit_code == 0 and "Usage" in result.output


def test_bad_input_is_one_line() -> None:
    result = runner.invoke(app, ["demo", "--steps", "0"])
    assert result.exit_code == 2 and "--steps" in result.output
    assert runner.invoke(app, ["dmeo"]).exit_code == 2


def test_the_installed_command() -> None:
    done = subprocess.run([sys.executable, "-m", "fastcfg", "info", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fastcfg"] == fastcfg.__version__
