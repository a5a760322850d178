"""What tests look at of pods' VMs and of the template that they are cloned from."""
import json

from spares import wait_log


def wait_template(d, n=1, timeout=90):
    # of the process that runs now, unless more than one are counted
    gone = d.log_text().rpartition(" serving ")[0].count("template ready") if n == 1 else 0
    wait_log(d, "template ready", n + gone, timeout)


def info(d, sandbox):
    return json.loads(d.client.PodSandboxStatus(pod_sandbox_id=sandbox, verbose=True).info["info"])


def machine(d, sandbox):
    return info(d, sandbox)["machine"]


def timeline(d, sandbox):
    return info(d, sandbox)["timeline"]
