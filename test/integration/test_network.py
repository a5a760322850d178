"""Host ports and bandwidth limits, through the real portmap and bandwidth plugins."""
import socket
import subprocess
import time

import pytest

from cri import pb, sandbox_config
from daemon import GATEWAY4, conflist

SERVE = "echo here > /page; exec httpd -f -p 80 -h /"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


def get(address, port, timeout=10):
    with socket.create_connection((address, port), timeout=timeout) as s:
        s.sendall(b"GET /page HTTP/1.0\r\n\r\n")
        data = b""
        while block := s.recv(65536):
            data += block
    return data


def wait_get(address, port, seconds=30):
    deadline = time.monotonic() + seconds
    while True:
        try:
            return get(address, port, timeout=2)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def nat_rules(word):
    out = subprocess.run(["iptables-save", "-t", "nat"], capture_output=True, text=True).stdout
    return [line for line in out.splitlines() if word in line]


def test_host_port_on_pod_and_loopback_addresses(make_pod):
    port = free_port()
    pod = make_pod(port_mappings=[pb.PortMapping(protocol=pb.TCP, container_port=80, host_port=port)])
    pod.start("web", "sh", "-c", SERVE)
    assert b"here" in wait_get(pod.status().network.ip, 80)
    assert b"here" in wait_get(GATEWAY4, port), "the host's own address"
    assert b"here" in wait_get("127.0.0.1", port), "the loopback address"
    assert nat_rules(f"dport {port}") or nat_rules(f"--dports {port}")
    pod.remove()
    with pytest.raises(OSError):
        get(GATEWAY4, port, timeout=2)
    assert not nat_rules(f"dport {port}") and not nat_rules(f"--dports {port}")


def test_host_port_on_one_address_only(make_pod):
    port = free_port()
    pod = make_pod(port_mappings=[pb.PortMapping(protocol=pb.TCP, container_port=80, host_port=port, host_ip=GATEWAY4)])
    pod.start("web", "sh", "-c", SERVE)
    assert b"here" in wait_get(GATEWAY4, port)
    with pytest.raises(OSError):
        get("127.0.0.1", port, timeout=2)


ECHO = r"""
#include <netinet/in.h>
#include <sys/socket.h>
int main(void)
{
    char data[2048];
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(5000)}, from;
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    if (s < 0 || bind(s, (struct sockaddr *)&at, sizeof(at)) < 0)
        return 1;
    for (;;) {
        socklen_t len = sizeof(from);
        ssize_t n = recvfrom(s, data, sizeof(data), 0, (struct sockaddr *)&from, &len);
        if (n < 0 || sendto(s, data, (size_t)n, 0, (struct sockaddr *)&from, len) < 0)
            return 1;
    }
}
"""


def test_host_port_of_udp(make_pod, tmp_path):
    (tmp_path / "echo.c").write_text(ECHO)
    subprocess.run(["gcc", "-static", "-O1", "-o", tmp_path / "echo", tmp_path / "echo.c"], check=True)
    port = free_port()
    pod = make_pod(port_mappings=[pb.PortMapping(protocol=pb.UDP, container_port=5000, host_port=port)])
    pod.start("echo", "/e/echo", mounts=[pb.Mount(host_path=str(tmp_path), container_path="/e", readonly=True)])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(1)
        for n in range(30):  # datagrams before the listener is up are lost
            s.sendto(b"datagram", (GATEWAY4, port))
            try:
                assert s.recv(100) == b"datagram"
                break
            except (TimeoutError, ConnectionRefusedError):
                assert n < 29, "no answer over UDP"


def test_ports_survive_a_restart_and_go_with_the_pod(daemon, make_pod):
    port = free_port()
    pod = make_pod(port_mappings=[pb.PortMapping(protocol=pb.TCP, container_port=80, host_port=port)])
    pod.start("web", "sh", "-c", SERVE)
    wait_get(GATEWAY4, port)
    daemon.restart()
    assert b"here" in get(GATEWAY4, port)
    pod.remove()
    assert not nat_rules(f"dport {port}") and not nat_rules(f"--dports {port}")


def token_buckets():
    out = subprocess.run(["tc", "qdisc", "show"], capture_output=True, text=True, check=True).stdout
    return [line for line in out.splitlines() if " tbf " in line]


def test_bandwidth_annotations(own_daemon, images):
    """The rates reach the plugin, which shapes the pod's interface both ways. Its buckets hold 512 MB at the start, as kubelet's
    users know it, so that what is transferred at once says nothing."""
    d = own_daemon()
    conf = conflist(ipam_dir=str(d.ipam))
    conf["plugins"].append({"type": "bandwidth", "capabilities": {"bandwidth": True}})
    d.write_network(conf)
    d.start()
    config = sandbox_config("shaped", annotations={"kubernetes.io/ingress-bandwidth": "7M",
                                                   "kubernetes.io/egress-bandwidth": "3M"})
    sandbox = d.run_pod(config)
    rates = token_buckets()
    assert any("rate 7Mbit" in r for r in rates) and any("rate 3Mbit" in r for r in rates), rates
    d.client.StopPodSandbox(pod_sandbox_id=sandbox)
    rates = token_buckets()
    assert not any("rate 7Mbit" in r or "rate 3Mbit" in r for r in rates), rates
