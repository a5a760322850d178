"""Pods without a VM: the host's namespaces, privileged containers, and everything that a pod in a VM can do, too."""
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import grpc
import pytest

from cri import container_config, pb, sandbox_config

NODE, POD, CONTAINER = pb.NODE, pb.POD, pb.CONTAINER


def linux(privileged=False, sysctls=None, cgroup_parent="", **modes):
    modes.setdefault("pid", CONTAINER)
    return pb.LinuxPodSandboxConfig(
        cgroup_parent=cgroup_parent, sysctls=sysctls or {},
        security_context=pb.LinuxSandboxSecurityContext(
            privileged=privileged, namespace_options=pb.NamespaceOption(**modes)))


def info(daemon, sandbox):
    import json
    return json.loads(daemon.client.PodSandboxStatus(pod_sandbox_id=sandbox, verbose=True).info["info"])


def privileged(**more):
    return {"security": {"privileged": True}, **more}


@pytest.fixture
def host_net(make_pod):
    return make_pod(hostname="", linux=linux(network=NODE))


def test_host_network(daemon, host_net):
    """It reaches what listens on the host's loopback, has the host's name, and no address of its own."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        c, _ = server.accept()
        c.sendall(b"from the host\n")
        c.close()

    threading.Thread(target=serve, daemon=True).start()
    st = host_net.run("c", "sh", "-c",
                      f"nc 127.0.0.1 {server.getsockname()[1]} </dev/null; hostname; echo $HOSTNAME; cat /etc/hostname")
    assert st.exit_code == 0, st
    name = socket.gethostname()
    assert host_net.output("c").split("\n")[:4] == ["from the host", name, name, name]
    status = host_net.status()
    assert status.network.ip == ""
    assert status.linux.namespaces.options.network == NODE
    facts = info(daemon, host_net.id)
    assert facts["backend"] == "host" and "network" in facts["backendReason"], facts
    server.close()
