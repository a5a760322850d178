"""aspisd under test: started with directories, network and cgroup of its own, so that it meets nobody else on the machine."""
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import grpc

from cri import Client

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("ASPIS_BUILD", ROOT / "build"))
GUEST = Path(os.environ.get("ASPIS_GUEST", "/var/cache/aspis/guest"))
INITRD = Path(os.environ.get("ASPIS_INITRD", BUILD / "agent" / "aspis-initrd.cpio"))
# the program in the initrd, which a sanitized build has not made itself
AGENT = Path(os.environ.get("ASPIS_AGENT", INITRD.parent / "aspis-agent"))

# What every daemon's configuration has besides: {section: {key: value}}.
SET = json.loads(os.environ.get("ASPIS_TEST_SET", "{}"))

# What pods get that ask for nothing else; see `vm` in conftest.py.
HANDLER = os.environ.get("ASPIS_TEST_HANDLER", "")

# Where daemons' logs are kept, if anywhere.
KEEP = os.environ.get("ASPIS_TEST_LOGS")

# Suites that run at the same time on one machine take different slots.
SLOT = int(os.environ.get("ASPIS_TEST_SLOT", "0"))
# Whether all mounts and named network namespaces are this suite's, or at least nobody else's (test/alone).
ALONE = SLOT == 0 or bool(os.environ.get("ASPIS_TEST_ALONE"))
BRIDGE = f"aspist{SLOT}"
SUBNET4 = f"10.231.{7 + SLOT}.0/24"
GATEWAY4 = f"10.231.{7 + SLOT}.1"
SUBNET6 = f"fd00:a515:{7 + SLOT}::/64"
GATEWAY6 = f"fd00:a515:{7 + SLOT}::1"


def conflist(bridge=BRIDGE, ipam_dir="/run/at/ipam", **more):
    return {
        "cniVersion": "1.0.0", "name": "aspis-test",
        "plugins": [
            {"type": "bridge", "bridge": bridge, "isGateway": True, "ipMasq": False,
             "hairpinMode": True,
             "ipam": {"type": "host-local", "dataDir": ipam_dir,
                      "ranges": [[{"subnet": SUBNET4, "gateway": GATEWAY4}],
                                 [{"subnet": SUBNET6, "gateway": GATEWAY6}]],
                      "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}, **more},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ]}


def last_words(text):
    """The end of a log, or what a sanitizer said first."""
    found = [at for at in (text.find("ERROR: "), text.find("runtime error:")) if at >= 0]
    return text[min(found) - 100:][:8000] if found and "Sanitizer" in text else text[-4000:]


class Points:
    """The failpoints that a daemon has, in the file that its ASPIS_FAILPOINTS_FILE names."""

    def __init__(self, path):
        self.path = path
        self.clear()

    def set(self, *specs):
        new = self.path.with_suffix(".new")
        new.write_text(";".join(specs))
        new.rename(self.path)

    def clear(self):
        self.set("")


class Daemon:
    """One daemon with its own world below `base`; survives restarts of the process."""

    def __init__(self, base, overrides=None, network=True, env=None):
        self.base = Path(base)
        self.run = self.base / "r"  # short: a unix socket's path has 107 bytes, a sandbox id 64
        self.state = Path("/var/lib/aspis-test") / self.base.name  # a real disk, not tmpfs
        self.cni_conf = self.base / "cni.d"
        self.cni_cache = self.base / "cni-cache"
        self.ipam = self.base / "ipam"
        self.certs = self.base / "certs.d"
        self.logs = self.base / "logs"
        self.socket = self.run / "aspis.sock"
        self.cgroup = f"/aspis-test-{self.base.name}"
        self.overrides = overrides or {}
        self.env = env or {}
        self.proc = None
        for d in (self.run, self.state, self.cni_conf, self.cni_cache, self.ipam, self.certs, self.logs):
            d.mkdir(parents=True, exist_ok=True)
        if network:
            self.write_network()
        self.config = self.base / "config.toml"
        self.write_config()
        self.client = None

    def write_network(self, conf=None):
        text = json.dumps(conf or conflist(ipam_dir=str(self.ipam)), indent=1)
        (self.cni_conf / "10-test.conflist").write_text(text)

    def write_config(self):
        sections = {
            "daemon": {"socket": str(self.socket), "run_root": str(self.run), "state_root": str(self.state),
                       "log_level": "debug", "log_target": "stderr"},
            "machine": {"kernel": str(GUEST / "kernel" / "vmlinuz"), "initrd": str(INITRD),
                        "jail_helper": str(BUILD / "sandbox" / "aspis-jail"),
                        "share_helper": str(BUILD / "sandbox" / "aspis-share"),
                        "agent": str(AGENT),
                        "vsock_helper": str(BUILD / "sandbox" / "aspis-vsock"),
                        "transport": os.environ.get("ASPIS_TRANSPORT", "auto"),
                        "accelerator": "tcg", "cgroup_root": self.cgroup,
                        "fork": False,  # test_forks.py
                        "spares": 0,  # they come and go as they like: test_spares.py has some
                        "base_memory_mib": 256, "scratch_mib": 2048,
                        # sanitizers and two cores shared by everything
                        "boot_timeout_seconds": 120},
            "images": {"root": str(self.state / "images"), "unpacker": str(BUILD / "cri" / "image" / "aspis-unpack"),
                       "hosts_dir": str(self.certs), "stall_timeout_seconds": 20},
            "network": {"conf_dir": str(self.cni_conf), "cache_dir": str(self.cni_cache),
                        "plugin_timeout_seconds": 20},
        }
        for section, keys in [*SET.items(), *self.overrides.items()]:
            sections.setdefault(section, {}).update(keys)
        lines = []
        for section, keys in sections.items():
            lines.append(f"[{section}]")
            for k, v in keys.items():
                lines.append(f"{k} = {json.dumps(v)}")
        self.config.write_text("\n".join(lines) + "\n")

    @property
    def log_file(self):
        return self.base / "aspisd.log"

    def log_text(self):
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def last_words(self):
        return last_words(self.log_text())

    def start(self, wait=60):
        env = dict(os.environ, **self.env)
        env.setdefault("ASAN_OPTIONS", "detect_leaks=1:halt_on_error=1")
        env.setdefault("UBSAN_OPTIONS", "halt_on_error=1:print_stacktrace=1")
        log = open(self.log_file, "ab")
        self.proc = subprocess.Popen([str(BUILD / "cri" / "aspisd"), "--config", str(self.config)],
                                     stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        log.close()
        deadline = time.monotonic() + wait
        while not self.answers():
            if self.proc.poll() is not None:
                raise AssertionError(f"aspisd ended with {self.proc.returncode}:\n{self.log_text()[-4000:]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"aspisd does not answer:\n{self.log_text()[-4000:]}")
            time.sleep(0.02)
        return self

    def answers(self):
        # a new channel each time: gRPC waits a second before it dials again
        if not self.socket.exists():
            return False
        self.client = Client(self.socket)
        try:
            self.client.Version(deadline=5)
            return True
        except grpc.RpcError:
            self.client.close()
            return False

    def stop(self, timeout=60):
        """SIGTERM; pods keep running."""
        if self.proc is None:
            return
        self.client.close()
        self.proc.send_signal(signal.SIGTERM)
        code = self.proc.wait(timeout)
        self.proc = None
        assert code == 0, f"aspisd ended with {code} on SIGTERM:\n{self.last_words()}"

    def kill(self):
        self.client.close()
        self.proc.kill()
        self.proc.wait()
        self.proc = None

    def alive(self):
        proc = self.proc
        return proc is not None and proc.poll() is None

    def restart(self):
        self.stop()
        return self.start()

    def remove_all(self):
        for s in self.client.ListPodSandbox().items:
            self.client.StopPodSandbox(pod_sandbox_id=s.id)
            self.client.RemovePodSandbox(pod_sandbox_id=s.id)

    def destroy(self):
        """Everything of it, also after a test that failed half-way."""
        try:
            if self.proc is not None and self.proc.poll() is None:
                self.remove_all()
        finally:
            code = None
            if self.proc is not None:
                self.client.close()
                self.proc.send_signal(signal.SIGTERM)
                try:
                    code = self.proc.wait(60)
                except subprocess.TimeoutExpired:
                    self.proc.kill()
                    self.proc.wait()
            for pid in self.qemu_pids():
                os.kill(pid, signal.SIGKILL)
            text = self.log_text()
            if KEEP:
                os.makedirs(KEEP, exist_ok=True)
                Path(KEEP, f"{self.base.name}-{time.time_ns()}.log").write_text(text)
            shutil.rmtree(self.base, ignore_errors=True)
            shutil.rmtree(self.state, ignore_errors=True)
            assert "Sanitizer" not in text and "runtime error:" not in text, last_words(text)
            assert code in (None, 0), f"aspisd ended with {code}:\n{text[-4000:]}"

    def qemu_pids(self):
        """QEMU processes of this daemon: by their cgroup, since that is ours alone."""
        found = []
        for p in Path("/proc").iterdir():
            if not p.name.isdigit():
                continue
            try:
                groups = (p / "cgroup").read_text()
                # a template being made is no pod's
                if f"{self.cgroup}/" in groups and "aspis-template-" not in groups:
                    found.append(int(p.name))
            except (FileNotFoundError, ProcessLookupError):
                pass
        return found

    def agent_pids(self):
        """Agents of this daemon's pods on the host."""
        found = []
        for p in Path("/proc").iterdir():
            try:
                argv = (p / "cmdline").read_bytes().split(b"\0") if p.name.isdigit() else []
            except (FileNotFoundError, ProcessLookupError):
                continue
            if argv[:2] == [b"aspis-agent", b"--host"] and argv[2].startswith(str(self.run).encode()):
                found.append(int(p.name))
        return sorted(found)

    # --- what tests do all the time ---
    def run_pod(self, config, **kw):
        kw.setdefault("runtime_handler", HANDLER)
        return self.client.RunPodSandbox(config=config, **kw).pod_sandbox_id

    def create(self, sandbox, config, pod_config):
        return self.client.CreateContainer(pod_sandbox_id=sandbox, config=config,
                                           sandbox_config=pod_config).container_id

    def status(self, container):
        return self.client.ContainerStatus(container_id=container).status

    def wait_state(self, container, state, timeout=60):
        deadline = time.monotonic() + timeout
        while True:
            st = self.status(container)
            if st.state == state:
                return st
            assert time.monotonic() < deadline, f"still in state {st.state}: {st}"
            time.sleep(0.05)

    def exec(self, container, *cmd, timeout=0):
        return self.client.ExecSync(container_id=container, cmd=list(cmd), timeout=timeout)
