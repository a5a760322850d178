"""crictl as an operator types it."""
import json
import os
import shutil
import subprocess

import pytest

CRICTL = shutil.which("crictl") or "/var/cache/aspis/bin/crictl"
pytestmark = [pytest.mark.skipif(not os.path.exists(CRICTL), reason="no crictl: there is no Go to build it with"),
              pytest.mark.once("the client's side")]


@pytest.fixture
def crictl(daemon, tmp_path):
    config = tmp_path / "crictl.yaml"
    config.write_text(f"runtime-endpoint: unix://{daemon.socket}\nimage-endpoint: unix://{daemon.socket}\ntimeout: 60\n")

    def run(*args, check=True):
        r = subprocess.run([CRICTL, "--config", str(config), *args], capture_output=True, text=True, timeout=120)
        assert not check or r.returncode == 0, r.stdout + r.stderr
        return r

    return run


def test_a_pod_by_hand(crictl, daemon, images, tmp_path):
    pod = tmp_path / "pod.json"
    # nothing about namespaces: crictl then asks for a shared process namespace
    pod.write_text(json.dumps({"metadata": {"name": "hand", "namespace": "default", "uid": "u1", "attempt": 1},
                               "log_directory": str(tmp_path), "linux": {}}))
    container = tmp_path / "container.json"
    container.write_text(json.dumps({"metadata": {"name": "c"}, "image": {"image": images["busybox"]},
                                     "command": ["sh", "-c", "echo hello; sleep 1000"], "log_path": "c.log", "linux": {}}))
    assert "aspis" in crictl("version").stdout
    assert json.loads(crictl("info").stdout)["status"]["conditions"]
    crictl("pull", images["busybox"])
    assert images["busybox"].rsplit(":", 1)[0] in crictl("images").stdout
    p = crictl("runp", str(pod)).stdout.strip()
    c = crictl("create", p, str(container), str(pod)).stdout.strip()
    crictl("start", c)
    assert c[:13] in crictl("ps").stdout and p[:13] in crictl("pods").stdout
    assert crictl("exec", "-s", c, "echo", "inside").stdout.strip() == "inside"
    r = crictl("exec", "-s", c, "sh", "-c", "exit 9", check=False)
    assert r.returncode != 0 and "9" in r.stderr
    assert crictl("logs", c).stdout == "hello\n"
    assert json.loads(crictl("inspectp", p).stdout)["status"]["state"] == "SANDBOX_READY"
    assert json.loads(crictl("inspect", c).stdout)["status"]["state"] == "CONTAINER_RUNNING"
    crictl("stop", "-t", "1", c)
    crictl("rm", c)
    crictl("stopp", p)
    crictl("rmp", p)
    assert not json.loads(crictl("pods", "-o", "json").stdout)["items"]
