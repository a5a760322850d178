"""What tests look at of pods' VMs and of the template that they are cloned from."""
import json

from spares import wait_log


def wait_template(d, n=1, timeout=90):
    wait_log(d, "template ready", n, timeout)


def machine(d, sandbox):
    return json.loads(d.client.PodSandboxStatus(pod_sandbox_id=sandbox, verbose=True).info["info"])["machine"]
