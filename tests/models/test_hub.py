"""Hub ids through the real client: from a server on loopback, then from the filled cache without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers import CLASSIFY, burnish
from hub_server import hub


@pytest.fixture
def repos(tiny_bert: Path, reviews_file: Path, tmp_path: Path) -> dict[str, Path]:
    model = Path(shutil.copytree(tiny_bert, tmp_path / "hub" / "model"))
    (model / "pytorch_model.bin").write_bytes(b"never fetched")
    (model / "modeling_evil.py").write_text("raise SystemExit('ran remote code')")
    data = tmp_path / "hub" / "data"
    data.mkdir()
    shutil.copy(reviews_file, data / "train.csv")
    lines = reviews_file.read_text().splitlines()
    (data / "test.csv").write_text("\n".join(lines[:21]) + "\n")
    return {"models/team/tiny": model, "datasets/team/reviews": data}


def test_model_and_data_set_from_the_hub(repos: dict[str, Path], tmp_path: Path) -> None:
    command = [*CLASSIFY, "--model", "team/tiny", "--data.train", "team/reviews", "--data.test", "team/reviews@test"]
    command += ["--train.length", "3 steps", "--json"]
    env = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    with hub(repos) as (address, requests):
        online = burnish(*command, "--run.dir", tmp_path / "online", env={**env, "HF_ENDPOINT": address})
    assert online.returncode == 0, online.stderr + "\n".join(requests)
    fetched = [request for request in requests if request.startswith("GET team/tiny/resolve")]
    assert any("model.safetensors" in request for request in fetched)
    assert not any(request.endswith((".bin", ".py")) for request in fetched)
    offline = burnish(*command, "--run.dir", tmp_path / "offline", env={**env, "HF_HUB_OFFLINE": "1"})
    assert offline.returncode == 0, offline.stderr
    first, second = json.loads(online.stdout), json.loads(offline.stdout)
    assert first["test"] == second["test"] and first["validation"] == second["validation"]
    done = burnish("evaluate", tmp_path / "online", "--json", env={**env, "HF_HUB_OFFLINE": "1"})
    assert json.loads(done.stdout)["examples"] == 20
    command = ["evaluate", tmp_path / "online", "--data.test", "team/reviews", "--json"]
    done = burnish(*command, env={**env, "HF_HUB_OFFLINE": "1"})
    assert json.loads(done.stdout)["examples"] == 20, "a Hub id given as test data is its test split"


def test_what_the_hub_does_not_have(repos: dict[str, Path], tmp_path: Path, reviews_file: Path) -> None:
    env = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    with hub(repos) as (address, _):
        env["HF_ENDPOINT"] = address
        model = burnish(*CLASSIFY, "--model", "team/nothing", "--data.train", reviews_file, env=env, cwd=tmp_path)
        data = burnish(*CLASSIFY, "--model", "team/tiny", "--data.train", "team/nothing", env=env, cwd=tmp_path)
    for done, name in ((model, "team/nothing"), (data, "team/nothing")):
        assert done.returncode == 2, done.stderr
        assert name in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
