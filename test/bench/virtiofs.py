"""The yardstick of test/bench/volume: a VM of the same kernel and size whose directory is Debian's virtiofsd's.

Such a VM must share its RAM with virtiofsd, so it cannot be a clone of a template and is none of Aspis's: QEMU is
started here, with an initrd of the static busybox and the kernel's modules. Commands go through its serial port.
"""
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

MODULES = ("virtio_pci", "virtiofs")
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mnt /usr/bin /usr/sbin /sbin
/bin/busybox --install -s
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for m in $(cat /modules/order); do insmod /modules/$m; done
mount -t virtiofs bench /mnt || echo no virtiofs
stty raw -echo < /dev/ttyS0
exec < /dev/ttyS0 > /dev/ttyS0 2>&1
echo READY
while read -r line; do
    eval "$line"
    echo "END $?"
done
poweroff -f
"""


def find_virtiofsd():
    """From qemu-system-common, or from the package virtiofsd of newer releases; None."""
    for path in ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"):
        if os.access(path, os.X_OK):
            return path
    return None


def _modules(kernel, to):
    """Copies the modules and what they need; writes down the order to load them in."""
    (tree,) = (kernel / "modules").iterdir()
    needs = {}
    for line in (tree / "modules.dep").read_text().splitlines():
        module, _, rest = line.partition(":")
        needs[Path(module).name.split(".")[0]] = [module, *rest.split()]
    order = []
    for name in MODULES:
        # modules.dep lists the outermost need last
        for path in reversed(needs[name]):
            if path not in order:
                order.append(path)
    to.mkdir()
    for path in order:
        shutil.copy(tree / path, to)
    (to / "order").write_text(" ".join(Path(p).name for p in order) + "\n")


def _initrd(kernel, work):
    root = work / "initrd"
    (root / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), root / "bin" / "busybox")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    _modules(kernel, root / "modules")
    archive = b""
    for i, path in enumerate([*sorted(root.rglob("*")), None], 1):
        name = str(path.relative_to(root)).encode() if path else b"TRAILER!!!"
        data = path.read_bytes() if path and path.is_file() else b""
        fields = (i, path.stat().st_mode if path else 0, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        for part in (b"070701" + b"".join(b"%08X" % f for f in fields) + name + b"\0", data):
            archive += part + bytes(-len(part) % 4)
    (work / "initrd.cpio").write_bytes(archive)
    return work / "initrd.cpio"


class VirtioFs:
    """directory: of the host, at /mnt in the VM. kvm: else emulated."""

    def __init__(self, virtiofsd, kernel, directory, work, kvm, memory_mib=256):
        work.mkdir()
        self.log = work / "console"
        self.processes = []
        try:
            self._start(virtiofsd, kernel, directory, work, kvm, memory_mib)
        except BaseException:
            self.stop()
            raise

    def _start(self, virtiofsd, kernel, directory, work, kvm, memory_mib):
        fs, serial = work / "fs.sock", work / "serial.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(fs))
        listener.listen(1)
        # the socket is there before QEMU asks for it
        self.processes.append(subprocess.Popen(
            [virtiofsd, f"--fd={listener.fileno()}", "-f", "-o", f"source={directory}", "-o", "cache=auto"],
            pass_fds=[listener.fileno()], stdout=subprocess.DEVNULL, stderr=open(work / "virtiofsd.log", "w")))
        listener.close()
        console = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        console.bind(str(serial))
        console.listen(1)
        self.processes.append(subprocess.Popen(
            ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
             "-machine", "q35,memory-backend=ram", "-accel", "kvm" if kvm else "tcg,tb-size=64,thread=multi",
             "-cpu", "host" if kvm else "max,la57=off,erms=off,fsrm=off",
             "-m", f"{memory_mib}M", "-object", f"memory-backend-memfd,id=ram,size={memory_mib}M,share=on",
             "-kernel", str(kernel / "vmlinuz"), "-initrd", str(_initrd(kernel, work)),
             "-append", "console=ttyS0 quiet panic=-1 loglevel=3 tsc=reliable",
             "-chardev", f"socket,id=fs,path={fs}", "-device", "vhost-user-fs-pci,chardev=fs,tag=bench",
             "-chardev", f"socket,id=serial,path={serial}", "-serial", "chardev:serial"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(work / "qemu.log", "w")))
        console.settimeout(30)
        self.serial, _ = console.accept()
        console.close()
        self.serial.settimeout(300)
        self.said = b""
        self._until(b"READY\n")

    def _until(self, mark):
        while mark not in self.said:
            more = self.serial.recv(65536)
            if not more:
                raise SystemExit(f"virtiofs: the VM ended: {self.said[-500:]!r}")
            self.said += more.replace(b"\r", b"")
        before, self.said = self.said.split(mark, 1)
        return before.decode(errors="replace")

    def run(self, script):
        """What a command of one line prints."""
        self.serial.sendall(("(" + script.replace("\n", " ") + ")\n").encode())
        out = self._until(b"END ")
        while b"\n" not in self.said:
            self.said += self.serial.recv(65536).replace(b"\r", b"")
        status, self.said = self.said.split(b"\n", 1)
        if status != b"0":
            raise SystemExit(f"virtiofs: {script} ended with {status.decode()}: {out}")
        return out

    def stop(self):
        for p in reversed(self.processes):
            p.kill()
            p.wait()
        self.processes = []
