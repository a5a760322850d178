#!/usr/bin/env python3
"""Holds the layer converter and the merge against a small model of the OCI rules.

Usage: check_layers.py LAYER_TOOL ASPIS_UNPACK [ASPIS_JAIL]

The model applies the same tar entries to a tree in memory, in a few plain lines. The merged image,
its parts put together in one file, is mounted by the kernel where that is possible and else
extracted by fsck.erofs, and compared name by name: types, modes, owners, times, contents, link
targets, device numbers, extended attributes, hard links. Speaks TAP.
"""

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time

TOOL, UNPACK = map(os.path.abspath, sys.argv[1:3])
JAIL = os.path.abspath(sys.argv[3]) if len(sys.argv) > 3 and sys.argv[3] else None
JAIL_UID = "64123"
ROOT = os.geteuid() == 0
BLOCK = 4096
SECCOMP = "0" if os.environ.get("ASPIS_SANITIZED") else "2"  # sanitizers need their system calls
INVALID, EXHAUSTED, DATA_LOSS = 13, 18, 25


class Skip(Exception):
    pass


# ---- the model ----


class Node:
    def __init__(self, kind, mode=0o755, uid=0, gid=0, mtime_ns=0, **more):
        self.kind, self.mode, self.uid, self.gid, self.mtime_ns = kind, mode, uid, gid, mtime_ns
        self.data = more.get("data", b"")
        self.target = more.get("target", "")
        self.rdev = more.get("rdev", 0)
        self.xattrs = dict(more.get("xattrs", {}))
        self.children = {}  # name -> (node, number of the layer that put it there)


class Model:
    def __init__(self):
        self.root = Node("dir")
        self.layer = 0

    def walk(self, path, create, through_lower=False):
        """Directory of the last component and its name, following symlinks within the root."""
        stack, todo, links = [self.root], path.split("/"), 0
        names = []
        while len(todo) > 1:
            part = todo.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                if len(stack) > 1:
                    stack.pop()
                    names.pop()
                continue
            there = stack[-1].children.get(part)
            if there is None:
                if not create:
                    raise Skip
                there = (Node("dir"), self.layer)
                stack[-1].children[part] = there
            node, layer = there
            if node.kind == "symlink":
                links += 1
                if links > 40 or (layer != self.layer and not through_lower):
                    raise Skip
                if node.target.startswith("/"):
                    stack, names = [self.root], []
                todo = node.target.split("/") + todo
                continue
            if node.kind != "dir":
                if layer == self.layer or not create:
                    raise Skip
                node = Node("dir")
                stack[-1].children[part] = (node, self.layer)
            stack.append(node)
            names.append(part)
        if todo[0] in (".", "..", ""):
            raise Skip
        return stack[-1], todo[0], "/".join(names)

    def whiteout(self, path):
        parent, name, _ = self.walk(path, False)
        parent.children.pop(name, None)

    def opaque(self, path):
        parent, name, _ = self.walk(path, False)
        if name not in parent.children or parent.children[name][0].kind != "dir":
            raise Skip
        parent.children[name][0].children = {}

    def add(self, path, node, through_lower=False):
        parent, name, _ = self.walk(path, True, through_lower)
        there = parent.children.get(name)
        if node.kind == "dir" and there is not None and there[0].kind == "dir":
            old = there[0]
            old.mode, old.uid, old.gid, old.mtime_ns = node.mode, node.uid, node.gid, node.mtime_ns
            old.xattrs = node.xattrs
        else:
            parent.children[name] = (node, self.layer)

    def link(self, path, target):
        self.walk(path, True)  # makes the parents, which may be in the target's place
        parent, name, _ = self.walk(target, False)
        node, layer = parent.children.get(name, (None, 0))
        if node is None or node.kind == "dir":
            raise Skip
        if node.kind == "symlink" and layer != self.layer:
            raise Skip  # an entry through it would be refused
        self.add(path, node)

    def listing(self):
        out, groups = {}, {}

        def visit(path, node):
            if node.kind == "dir":
                out[path] = describe("dir", node.mode, node.uid, node.gid, node.mtime_ns,
                                     xattrs=node.xattrs)
                for name, (child, _) in node.children.items():
                    visit(f"{path}/{name}", child)
                return
            groups.setdefault(id(node), []).append(path)
            mode = 0o777 if node.kind == "symlink" else node.mode
            out[path] = describe(node.kind, mode, node.uid, node.gid, node.mtime_ns,
                                 data=node.data, target=node.target, rdev=node.rdev,
                                 xattrs=node.xattrs)

        visit("", self.root)
        for paths in groups.values():
            for p in paths:
                out[p]["links"] = sorted(paths)
        return out


def describe(kind, mode, uid, gid, mtime_ns, data=b"", target="", rdev=0, xattrs=None):
    return {"kind": kind, "mode": mode, "owner": (uid, gid), "mtime": mtime_ns,
            "data": hashlib.sha256(data).hexdigest() if kind == "file" else "",
            "target": target, "rdev": rdev, "xattrs": dict(xattrs or {}), "links": []}


# ---- reading a file system back ----

KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink", stat.S_IFCHR: "chr",
         stat.S_IFBLK: "blk", stat.S_IFIFO: "fifo"}


def list_tree(top, xattrs=True):
    out, groups = {}, {}

    def visit(path):
        real = top + path
        st = os.lstat(real or "/")
        kind = KINDS[stat.S_IFMT(st.st_mode)]
        data = target = b""
        if kind == "file":
            with open(real, "rb") as f:
                data = f.read()
        elif kind == "symlink":
            target = os.readlink(real)
        names = os.listxattr(real, follow_symlinks=False) if xattrs else []
        out[path] = describe(
            kind, stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns, data,
            target or "", st.st_rdev if kind in ("chr", "blk") else 0,
            {n: os.getxattr(real, n, follow_symlinks=False) for n in names
             if n != "security.selinux"})
        if kind == "dir":
            entries = sorted(os.listdir(real))
            for name in entries:
                visit(f"{path}/{name}")
        else:
            groups.setdefault(st.st_ino, []).append(path)

    visit("")
    for paths in groups.values():
        for p in paths:
            out[p]["links"] = sorted(paths)
    return out


def can_mount():
    if not ROOT:
        return False
    subprocess.run(["modprobe", "-q", "erofs"], check=False, stderr=subprocess.DEVNULL)
    with open("/proc/filesystems") as f:
        if "\terofs\n" not in f.read():
            return False
    return os.path.exists("/dev/loop-control")


class Bench:
    """A scratch directory, and the tools to be tested."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="aspis-layers-")
        self.n = 0
        self.mounts = can_mount()

    def path(self, what):
        self.n += 1
        return f"{self.dir}/{self.n}.{what}"

    def convert(self, tar, max_bytes=1 << 30, jail=False):
        out = self.path("erofs")
        argv = [TOOL, "convert", UNPACK, str(max_bytes), out]
        if jail:
            argv += [JAIL, JAIL_UID]
        r = subprocess.run(argv, input=tar, capture_output=True, check=False)
        if r.returncode != 0 and os.path.exists(out):
            raise AssertionError("a file is left behind")
        return r, out

    def layer(self, tar):
        r, out = self.convert(tar)
        if r.returncode != 0:
            raise AssertionError(r.stderr.decode())
        diff_id, size, _, file_bytes = r.stdout.decode().split()
        assert diff_id == "sha256:" + hashlib.sha256(tar).hexdigest(), "diff_id"
        assert int(size) == len(tar) and int(file_bytes) == os.path.getsize(out)
        self.fsck(out)
        return out

    def fsck(self, path):
        r = subprocess.run(["fsck.erofs", path], capture_output=True, check=False)
        assert r.returncode == 0, f"fsck.erofs: {r.stdout + r.stderr}"

    def merge(self, layers):
        meta = self.path("meta")
        r = subprocess.run([TOOL, "merge", meta, *layers], capture_output=True, check=False)
        if r.returncode != 0:
            assert not os.path.exists(meta)
            return r, None
        whole = self.path("image")
        with open(whole, "wb") as out:
            for part in [meta, *layers]:
                assert os.path.getsize(part) % BLOCK == 0
                with open(part, "rb") as f:
                    shutil.copyfileobj(f, out)
        self.fsck(whole)
        return r, whole

    def read(self, image):
        top = self.path("mnt")
        if self.mounts:
            os.mkdir(top)
            subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", image, top], check=True)
            try:
                return list_tree(top)
            finally:
                subprocess.run(["umount", top], check=True)
        subprocess.run(["fsck.erofs", f"--extract={top}", image], check=True, capture_output=True)
        return list_tree(top, xattrs=False)

    def close(self):
        shutil.rmtree(self.dir)


BENCH = Bench()


def compare(want, got):
    if not BENCH.mounts:
        # fsck.erofs 1.5 extracts no xattrs and splits hard links.
        for listing in (want, got):
            for entry in listing.values():
                entry["xattrs"], entry["links"] = {}, []
    problems = []
    for path in sorted(set(want) | set(got)):
        if want.get(path) != got.get(path):
            problems.append(f"{path or '/'}: want {want.get(path)}, got {got.get(path)}")
    assert not problems, "\n".join(problems[:8])


# ---- tar making ----


def tar_bytes(entries, fmt=tarfile.PAX_FORMAT):
    buf = io.BytesIO()
    with tarfile.open(fileobj=buf, mode="w", format=fmt, errors="surrogateescape") as t:
        for info, data in entries:
            t.addfile(info, io.BytesIO(data) if data is not None else None)
    return buf.getvalue()


def entry(name, kind=tarfile.REGTYPE, data=None, mode=0o644, uid=0, gid=0, mtime=0, linkname="",
          xattrs=None, dev=(0, 0)):
    i = tarfile.TarInfo(name)
    i.type, i.mode, i.uid, i.gid, i.mtime, i.linkname = kind, mode, uid, gid, mtime, linkname
    i.devmajor, i.devminor = dev
    if data is not None:
        i.size = len(data)
    for k, v in (xattrs or {}).items():
        i.pax_headers["SCHILY.xattr." + k] = v.decode("utf-8", "surrogateescape")
    return i, data


def entry_of(path, node):
    kinds = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE,
             "chr": tarfile.CHRTYPE, "blk": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE}
    i, data = entry(path, kinds[node.kind], node.data if node.kind == "file" else None, node.mode,
                    node.uid, node.gid, linkname=node.target, xattrs=node.xattrs,
                    dev=(os.major(node.rdev), os.minor(node.rdev)))
    if node.mtime_ns % 10**9 or node.mtime_ns < 0:
        i.pax_headers["mtime"] = f"{node.mtime_ns / 10**9:.6f}"
    i.mtime = node.mtime_ns // 10**9
    return i, data


# ---- random layers ----


class Generator:
    NAMES = ["a", "b", "c", "d-e", ".f", "g" * 40, "\u00fc", "+x"]

    def __init__(self, seed):
        self.r = random.Random(seed)
        self.model = Model()

    def path(self):
        return "/".join(self.r.choice(self.NAMES) for _ in range(self.r.choice([1, 2, 2, 3, 3, 4])))

    def attributes(self, kind):
        r = self.r
        x = {}
        if kind in ("file", "dir") and r.random() < 0.2:
            x["user.k" + r.choice("12")] = r.randbytes(r.choice([1, 30])).hex().encode()
        if kind == "file" and r.random() < 0.1:
            x["security.capability"] = (b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00"
                                        b"\x00\x00\x00\x00\x00\x00\x00\x00")
        if kind == "dir" and r.random() < 0.1:
            x["trusted.t"] = b"v"
        mtime = r.randrange(0, 2**31) * 10**9
        if r.random() < 0.3:
            mtime += r.randrange(1, 10**6) * 1000
            mtime -= mtime % 64000  # a float carries no more
        return {"mode": r.choice([0o644, 0o755, 0o4755, 0o1777, 0o600, 0o2750]),
                "uid": r.choice([0, 1000, 70000, 2**32 - 2]), "gid": r.choice([0, 5, 100000]),
                "mtime_ns": mtime - mtime % 10**9 if mtime % 10**9 == 0 else exact(mtime),
                "xattrs": x}

    def node(self):
        r = self.r
        kind = r.choice(["file"] * 6 + ["dir"] * 4 + ["symlink"] * 2 + ["chr", "blk", "fifo"])
        more = self.attributes(kind)
        if kind == "file":
            more["data"] = r.randbytes(r.choice([0, 1, 100, 4095, 4096, 4097, 20000]))
        elif kind == "symlink":
            more["target"] = r.choice(["", "/", "../"]) + self.path()
        elif kind in ("chr", "blk"):
            more["rdev"] = os.makedev(r.choice([1, 8, 259]), r.choice([1, 3, 300, 70000]))
        return Node(kind, **more)

    def layer(self, size):
        """The tar of one more layer; the model has applied it."""
        r, m = self.r, self.model
        m.layer += 1
        entries, marks, mark_parents = [], [], set()
        for _ in range(r.randrange(0, max(1, size // 4)) if m.layer > 1 else 0):
            path = self.path()
            head, _, tail = path.rpartition("/")
            if any(p == path or p.startswith(path + "/") for p in mark_parents):
                continue
            try:
                if r.random() < 0.7:
                    m.whiteout(path)
                    marks.append(entry((head + "/" if head else "") + ".wh." + tail, data=b""))
                    mark_parents.add(head)
                else:
                    m.opaque(path)
                    marks.append(entry(path + "/.wh..wh..opq", data=b""))
                    mark_parents.add(path)
            except Skip:
                continue
        for i in range(size):
            path, last = self.path(), i == size - 1
            link = r.random() < 0.15
            node = self.node()
            try:
                _, _, where = m.walk(path, False, last)
                real = (where + "/" if where else "") + path.rpartition("/")[2]
            except Skip:
                real = path
            if (link or node.kind != "dir") and any(
                    p == real or p.startswith(real + "/") for p in mark_parents):
                continue
            try:
                if link:
                    target = r.choice([p for p in self.files()] or ["none"])
                    if r.random() < 0.3:
                        target = "/" + target
                    self.checked(lambda m: m.link(path, target))
                    entries.append(entry(path, tarfile.LNKTYPE, linkname=target))
                else:
                    self.checked(lambda m: m.add(path, node, last))
                    name = r.choice(["", "", "./", "/"]) + path + ("/" if node.kind == "dir" else "")
                    entries.append(entry_of(name, node))
            except Skip:
                continue
        for mark in marks:
            entries.insert(r.randrange(0, len(entries) + 1), mark)
        return tar_bytes(entries)

    def checked(self, step):
        """Runs a step on the model; one that fails half-way leaves nothing."""
        try:
            self.trial = True
            import copy
            step(copy.deepcopy(self.model))
        finally:
            self.trial = False
        step(self.model)

    def files(self):
        out = []

        def visit(path, node):
            for name, (child, _) in sorted(node.children.items()):
                p = f"{path}/{name}" if path else name
                if child.kind == "dir":
                    visit(p, child)
                else:
                    out.append(p)

        visit("", self.model.root)
        return out


def exact(mtime_ns):
    """The time as the text in a PAX header says it."""
    whole, _, part = f"{mtime_ns / 10**9:.6f}".partition(".")
    return int(whole) * 10**9 + int(part.ljust(9, "0"))


def check_random(seed, layers, size):
    g = Generator(seed)
    files = [BENCH.layer(g.layer(size)) for _ in range(layers)]
    r, image = BENCH.merge(files)
    assert r.returncode == 0, r.stderr.decode()
    compare(g.model.listing(), BENCH.read(image))
    for f in files:
        os.unlink(f)
    os.unlink(image)


# ---- single cases ----


def image_of(*layers):
    r, image = BENCH.merge([BENCH.layer(x if isinstance(x, bytes) else tar_bytes(x))
                            for x in layers])
    assert r.returncode == 0, r.stderr.decode()
    return BENCH.read(image)


def refused(tar, code, text, **more):
    r, _ = BENCH.convert(tar if isinstance(tar, bytes) else tar_bytes(tar), **more)
    assert r.returncode == code, f"status {r.returncode}: {r.stderr.decode()}"
    assert text in r.stderr.decode(), r.stderr.decode()


D, L, H = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def check_names():
    got = image_of([entry("./", D, mode=0o700), entry("/abs", data=b"1"), entry("././x//y", data=b"2"),
                    entry("long/" + "n" * 255, data=b"3"),
                    entry("/".join(["deep" * 20] * 30), data=b"4"),
                    entry("!before", data=b""), entry(".-", data=b""), entry("..a", data=b"")])
    assert got[""]["mode"] == 0o700 and "/abs" in got and "/x/y" in got and got["/x"]["mode"] == 0o755
    assert "/long/" + "n" * 255 in got and "/!before" in got and "/.-" in got and "/..a" in got


def check_bytes_in_names():
    raw = "caf\udce9"  # not UTF-8
    for fmt in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        tar = tar_bytes([entry(raw, data=b"1"), entry("\u00e9\u4e16", data=b"2"),
                         entry("l", L, linkname=raw)], fmt)
        got = image_of(tar)
        assert "/" + raw in got and "/\u00e9\u4e16" in got, sorted(got)
        assert got["/l"]["target"] == raw


def check_gnu_long():
    name, target = "d/" * 60 + "f" * 200, "t/" * 150 + "x"
    got = image_of(tar_bytes([entry(name, data=b"1"), entry("l", L, linkname=target)],
                             tarfile.GNU_FORMAT))
    assert "/" + name in got and got["/l"]["target"] == target


def check_refused_names():
    refused([entry("a/../b", data=b"")], INVALID, 'entry a/../b: the path has a ".." component')
    refused([entry("../b", data=b"")], INVALID, "..")
    refused([entry("x", H, linkname="../../etc/passwd")], INVALID, "..")
    refused([entry("n" * 256, data=b"")], INVALID, "255")
    refused([entry("a/" * 2100 + "b", data=b"")], INVALID, "longer than")
    refused([entry("a/" * 600 + "b", data=b"")], INVALID, "nested")
    refused([entry("./.", data=b"x")], INVALID, "")
    refused([entry("a", data=b""), entry("a/b", data=b"")], INVALID, "a is not a directory")
    refused([entry("d", D), entry("x", H, linkname="d")], INVALID, "directory")


def check_whiteout_names():
    refused([entry(".wh.", data=b"")], INVALID, "no name")
    refused([entry("d/.wh...", data=b"")], INVALID, "no name")
    refused([entry(".wh.x/y", data=b"")], INVALID, "whiteout is used as a directory")
    got = image_of([entry(".wh..wh.plnk/1", data=b""), entry(".wh..wh.aufs", data=b""),
                    entry("k", data=b"")])
    assert sorted(got) == ["", "/k"], sorted(got)


def check_whiteout_order():
    low = [entry("d/", D, mode=0o711), entry("d/x", data=b"low"), entry("f", data=b"low")]
    for top in ([entry(".wh.d", data=b""), entry("d/y", data=b"")],
                [entry("d/y", data=b""), entry(".wh.d", data=b"")]):
        got = image_of(low, top + [entry(".wh.f", data=b"")])
        assert sorted(got) == ["", "/d", "/d/y"] and got["/d"]["mode"] == 0o755
    for top in ([entry("d/.wh..wh..opq", data=b""), entry("d/y", data=b"")],
                [entry("d/y", data=b""), entry("d/.wh..wh..opq", data=b"")]):
        got = image_of(low, top)
        assert sorted(got) == ["", "/d", "/d/y", "/f"] and got["/d"]["mode"] == 0o711


def check_symlinked_parents():
    got = image_of([entry("lib", L, linkname="usr/lib"), entry("lib/a", data=b"1"),
                    entry("abs", L, linkname="/../../usr/./lib/.."), entry("abs/b", data=b"2")])
    assert "/usr/lib/a" in got and "/usr/b" in got and got["/lib"]["kind"] == "symlink"
    got = image_of([entry("usr/lib/", D, mode=0o711), entry("lib", L, linkname="/usr/lib")],
                   [entry("lib/a", data=b"1"), entry("lib/s/t", data=b"2")],
                   [entry("lib/.wh.a", data=b"")])
    assert "/usr/lib/s/t" in got and "/usr/lib/a" not in got and got["/usr/lib"]["mode"] == 0o711
    got = image_of([entry("lib", L, linkname="f"), entry("f", data=b"")], [entry("lib/a", data=b"")])
    assert got["/lib"]["kind"] == "dir" and "/lib/a" in got
    refused([entry("l", L, linkname="m"), entry("m", L, linkname="l"), entry("l/x", data=b"")],
            INVALID, "too many symbolic links")
    many = [entry(f"s{i}", L, linkname=f"s{i + 1}/" * 2) for i in range(45)]
    refused(many + [entry("s0/x", data=b"")], INVALID, "symbolic links")


def check_links_to_lower():
    low = [entry("usr/bin/a", data=b"abc", mode=0o4755, uid=7), entry("bin", L, linkname="usr/bin")]
    got = image_of(low, [entry("b", H, linkname="bin/a"), entry("c", H, linkname="/usr/bin/a"),
                         entry("usr/bin/.wh.a", data=b"")])
    assert got["/b"]["links"] == ["/b", "/c"] or not BENCH.mounts
    assert got["/b"]["mode"] == 0o4755 and got["/b"]["owner"] == (7, 0) and "/usr/bin/a" not in got
    r, _ = BENCH.merge([BENCH.layer(tar_bytes([entry("b", H, linkname="nowhere/x")]))])
    assert r.returncode == INVALID and b"nowhere/x" in r.stderr, r.stderr


def check_last_wins():
    got = image_of([entry("a", data=b"1"), entry("h", H, linkname="a"), entry("a", data=b"22"),
                    entry("d", data=b""), entry("d/", D), entry("d/x", data=b""),
                    entry("e/x", data=b""), entry("e", data=b"file")])
    assert got["/a"]["data"] == hashlib.sha256(b"22").hexdigest()
    assert got["/h"]["data"] == hashlib.sha256(b"1").hexdigest()
    assert got["/d"]["kind"] == "dir" and got["/e"]["kind"] == "file" and "/e/x" not in got


def check_xattrs():
    if not BENCH.mounts:
        return
    acl = b"\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x04\x00\x04\x00\xff\xff\xff\xff" \
          b"\x20\x00\x04\x00\xff\xff\xff\xff"
    got = image_of([entry("d/", D, xattrs={"trusted.overlay.opaque": b"y", "user.a": b"1",
                                           "trusted.aspis.implied": b"y", "odd.name": b"1"}),
                    entry("f", data=b"", xattrs={"user.overlay.whiteout": b"y",
                                                 "trusted.aspis.link": b"etc/shadow",
                                                 "user.big": b"v" * 60000, "user.z": b"",
                                                 "system.posix_acl_access": acl})])
    assert got["/d"]["xattrs"] == {"user.a": b"1"}, got["/d"]["xattrs"]
    x = got["/f"]["xattrs"]
    x.pop("system.posix_acl_access", None)
    assert x == {"user.big": b"v" * 60000, "user.z": b""}, sorted(x)
    refused([entry("f", data=b"", xattrs={"user.a": b"v" * 40000, "user.b": b"w" * 40000})],
            INVALID, "extended attributes")


def check_symlink_sizes():
    """Targets that fit behind the inode, beside xattrs of all sizes, and ones that do not."""
    got = image_of([entry(f"l{n}", L, linkname="t" * n) for n in (1, 100, 3000, 4000, 4032, 4033, 4095)])
    for n in (1, 100, 3000, 4000, 4032, 4033, 4095):
        assert got[f"/l{n}"]["target"] == "t" * n
    refused([entry("l", L, linkname="t" * 4096)], INVALID, "target")


def check_big_directories():
    entries = []
    for n in (1, 50, 60, 61, 62, 63, 64, 5000):
        entries += [entry(f"d{n}/{'n' * 40}{i}", data=b"") for i in range(n)]
    got = image_of(entries)
    for n in (1, 50, 60, 61, 62, 63, 64, 5000):
        assert sum(p.startswith(f"/d{n}/") for p in got) == n


def check_damaged():
    whole = tar_bytes([entry("a", data=b"x" * 9000), entry("b", data=b"y" * 2000)])
    refused(whole[:3000], INVALID, "entry a")
    refused(whole[:12000], INVALID, "entry b")
    refused(b"garbage" * 1000, INVALID, "tar")
    bad = bytearray(whole)
    bad[148:156] = b"0000000\0"
    refused(bytes(bad), INVALID, "tar")
    packed = gzip.compress(whole)
    refused(packed[:-9], INVALID, "gzip stream ends too early")
    bad = bytearray(packed)
    bad[40] ^= 0x55
    refused(bytes(bad), INVALID, "gzip")
    refused(bytes(packed[:-8]) + b"\0\0\0\0" + packed[-4:], INVALID, "gzip")


def check_bombs():
    refused(gzip.compress(tar_bytes([entry("zeros", data=bytes(5 << 20))])), EXHAUSTED,
            "more than", max_bytes=1 << 20)
    info, _ = entry("hole", data=b"")
    info.pax_headers.update({"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
                             "GNU.sparse.name": "hole", "GNU.sparse.realsize": "1099511627776"})
    body = b"1\n1099511627776\n0\n".ljust(512, b"\0")
    info.size = len(body)
    refused([(info, body)], EXHAUSTED, "more than", max_bytes=1 << 30)
    # A member that claims more than there is.
    t = bytearray(tar_bytes([entry("big", data=b"x")]))
    t[124:136] = b"77777777777\0"
    t[148:156] = b"        "
    t[148:156] = b"%06o\0 " % sum(t[:512])
    refused(bytes(t[:1024]), INVALID, "entry big")


def check_sparse():
    if shutil.which("tar") is None:
        return
    src = BENCH.path("sparse")
    os.mkdir(src)
    with open(src + "/s", "wb") as f:
        f.write(b"head")
        f.seek(3 << 20)
        f.write(b"mid" * 2000)
        f.truncate(9 << 20)
    with open(src + "/s", "rb") as f:
        want = hashlib.sha256(f.read()).hexdigest()
    for fmt in ("gnu", "posix"):
        tar = subprocess.run(["tar", f"--format={fmt}", "-S", "-C", src, "-c", "s"],
                             capture_output=True, check=True).stdout
        assert len(tar) < 1 << 20
        layer = BENCH.layer(tar)
        assert os.stat(layer).st_blocks * 512 < 1 << 20, "holes take space"
        _, image = BENCH.merge([layer])
        assert BENCH.read(image)["/s"]["data"] == want


def check_packings():
    tar = tar_bytes([entry("a", data=b"x" * 100000), entry("b", data=b"y")])
    zstd = subprocess.run(["zstd", "-q", "-c"], input=tar, capture_output=True, check=False) \
        if shutil.which("zstd") else None
    forms = {"plain": tar, "gzip": gzip.compress(tar),
             "gzip members": gzip.compress(tar[:50000]) + gzip.compress(tar[50000:]),
             "gzip and garbage": gzip.compress(tar) + b"garbage"}
    if zstd is not None:
        forms["zstd"] = zstd.stdout
        forms["skippable"] = b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstd.stdout
        refused(zstd.stdout[:-5], INVALID, "zstd")
    outs = set()
    for form in forms.values():
        r, out = BENCH.convert(form)
        assert r.returncode == 0, r.stderr
        assert r.stdout.split()[0].decode() == "sha256:" + hashlib.sha256(tar).hexdigest()
        with open(out, "rb") as f:
            outs.add(f.read())
    assert len(outs) == 1, "the same tar must give the same bytes"


def check_endings():
    """What other runtimes accept: no end marker, bytes behind it; all of it is in the digest."""
    tar = tar_bytes([entry("a", data=b"x")])
    for form in (tar, tar[:1024], tar + b"trailing garbage" * 5000, b"", bytes(1024)):
        r, out = BENCH.convert(form)
        assert r.returncode == 0, r.stderr
        assert r.stdout.split()[0].decode() == "sha256:" + hashlib.sha256(form).hexdigest()
        BENCH.fsck(out)


def check_feeder():
    """A feeder whose unpacker refuses gets EPIPE, and does not hang."""
    tar = tar_bytes([entry("../x", data=b"")]) + bytes(8 << 20)
    refused(tar, INVALID, "..")


def check_overlay():
    """Layer files as lower layers of a real overlayfs show the same as the merge."""
    if not BENCH.mounts:
        return
    g = Generator(77)
    g.NAMES = ["a", "b", "c", "d"]
    layers = [[entry("d/", D), entry("d/x", data=b"1"), entry("d/y", data=b"2"), entry("f", data=b"3"),
               entry("o/", D), entry("o/p", data=b"4")],
              [entry("d/", D), entry("d/.wh.x", data=b""), entry("o/", D),
               entry("o/.wh..wh..opq", data=b""), entry("o/q", data=b"5"), entry(".wh.f", data=b"")],
              [entry("d/", D, mode=0o700), entry("d/y", data=b"6"), entry("f/", D),
               entry("f/g", L, linkname="../d")]]
    files = [BENCH.layer(tar_bytes([entry("./", D)] + x)) for x in layers]
    _, image = BENCH.merge(files)
    want = BENCH.read(image)
    tops = []
    try:
        for f in files:
            top = BENCH.path("low")
            os.mkdir(top)
            subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", f, top], check=True)
            tops.append(top)
        top = BENCH.path("over")
        os.mkdir(top)
        subprocess.run(["mount", "-t", "overlay", "-o", "ro,lowerdir=" + ":".join(reversed(tops)),
                        "overlay", top], check=True)
        tops.append(top)
        compare(want, list_tree(top))
    finally:
        for top in reversed(tops):
            subprocess.run(["umount", top], check=True)


def check_damaged_layers():
    """A layer file that the unpacker spoilt is refused or harmless, never fatal."""
    layer = BENCH.layer(tar_bytes([entry("d/", D), entry("d/f", data=b"x" * 5000),
                                   entry("d/g", H, linkname="d/f"), entry("l", L, linkname="d")]))
    with open(layer, "rb") as f:
        good = f.read()
    r = random.Random(5)
    for n in range(150):
        bad = bytearray(good)
        for _ in range(r.choice([1, 3])):
            bad[r.randrange(2 * BLOCK + 4096, len(bad))] = r.choice([0, 1, 0x7f, 0xff, r.randrange(256)])
        path = BENCH.path("bad")
        with open(path, "wb") as f:
            f.write(bad if n % 10 else bad[:r.randrange(len(bad))])
        res = subprocess.run([TOOL, "merge", path + ".meta", path], capture_output=True, check=False)
        assert res.returncode in (0, INVALID, EXHAUSTED, DATA_LOSS), (res.returncode, res.stderr)


# ---- archives of images ----


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def goarch():
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


class Image:
    """Two layers, the upper one packed, in the files of an OCI layout."""

    def __init__(self, text, annotations):
        self.layers = [tar_bytes([entry("etc/os", data=b"low"), entry("x", data=text)]),
                       tar_bytes([entry(".wh.x", data=b""), entry("y", data=text)])]
        self.config = json.dumps({"os": "linux", "architecture": goarch(), "config": {},
                                  "rootfs": {"type": "layers",
                                             "diff_ids": [digest(x) for x in self.layers]}}).encode()
        oci = "application/vnd.oci.image."
        packed = [self.layers[0], gzip.compress(self.layers[1])]
        types = ["layer.v1.tar", "layer.v1.tar+gzip"]
        self.manifest = json.dumps({
            "schemaVersion": 2, "mediaType": oci + "manifest.v1+json",
            "config": self.descriptor(oci + "config.v1+json", self.config),
            "layers": [self.descriptor(oci + t, d) for t, d in zip(types, packed)]}).encode()
        self.blobs = {f"blobs/sha256/{digest(b)[7:]}": b
                      for b in [self.config, self.manifest, *packed]}
        self.entry = {**self.descriptor(oci + "manifest.v1+json", self.manifest),
                      "annotations": annotations}

    @staticmethod
    def descriptor(kind, data):
        return {"mediaType": kind, "digest": digest(data), "size": len(data)}


def layout(*images):
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
             "index.json": json.dumps({"schemaVersion": 2,
                                       "manifests": [i.entry for i in images]}).encode()}
    for i in images:
        files.update(i.blobs)
    return files


def write_files(files, form):
    path = BENCH.path("archive")
    if form == "dir":
        for name, data in files.items():
            os.makedirs(os.path.dirname(f"{path}/{name}"), exist_ok=True)
            with open(f"{path}/{name}", "wb") as f:
                f.write(data)
    else:
        with open(path, "wb") as f:
            f.write(tar_bytes([entry(n, data=d) for n, d in files.items()],
                              tarfile.GNU_FORMAT if form == "gnu" else tarfile.PAX_FORMAT))
    return path


def run_import(path, *name):
    store = BENCH.path("store")
    r = subprocess.run([TOOL, "import", store, UNPACK, path, *name], capture_output=True,
                       check=False)
    left = os.listdir(store + "/tmp") if os.path.isdir(store + "/tmp") else []
    assert not left, f"left behind: {left}"
    return r, store


def image_in(store, image):
    parts = [f"{store}/meta/{digest(image.config)[7:]}.erofs"]
    parts += [f"{store}/layers/{digest(x)[7:]}.erofs" for x in image.layers]
    whole = BENCH.path("image")
    with open(whole, "wb") as out:
        for p in parts:
            with open(p, "rb") as f:
                shutil.copyfileobj(f, out)
    return sorted(BENCH.read(whole))


TAGGED = "org.opencontainers.image.ref.name"
FULL = "io.containerd.image.name"


def check_import_layout():
    one, two = Image(b"1", {FULL: "quay.io/a/one:v1", TAGGED: "v1"}), Image(b"2", {TAGGED: "v2"})
    for form in ("dir", "pax", "gnu"):
        r, store = run_import(write_files(layout(one, two), form))
        assert r.returncode == 0, r.stderr.decode()
        first, second = r.stdout.decode().splitlines()
        size = sum(map(len, one.blobs.values()))
        assert first == (f"{digest(one.config)} quay.io/a/one:v1 "
                         f"quay.io/a/one@{digest(one.manifest)} {size}"), first
        assert second.split()[0] == digest(two.config) and len(second.split()) == 2
        assert image_in(store, one) == ["", "/etc", "/etc/os", "/y"]
    r, _ = run_import(write_files(layout(two), "pax"), "named")
    assert b" docker.io/library/named:latest " in r.stdout, (r.stdout, r.stderr)
    r, _ = run_import(write_files(layout(one, two), "pax"), "named")
    assert r.returncode == INVALID and b"2 images" in r.stderr


def check_import_docker():
    i = Image(b"1", {})
    name = digest(i.config)[7:] + ".json"
    files = {"0/layer.tar": i.layers[0], "1/layer.tar": i.layers[1], name: i.config,
             "manifest.json": json.dumps([{"Config": name, "RepoTags": ["app:1", "quay.io/b/app:2"],
                                           "Layers": ["0/layer.tar", "1/layer.tar"]}]).encode()}
    r, store = run_import(write_files(files, "pax"))
    assert r.returncode == 0, r.stderr.decode()
    assert r.stdout.decode().split()[1:3] == ["docker.io/library/app:1", "quay.io/b/app:2"]
    assert image_in(store, i) == ["", "/etc", "/etc/os", "/y"]
    # Older docker writes a layer once and links to it.
    entries = [entry(n, data=d) for n, d in files.items() if n != "1/layer.tar"]
    entries += [entry("2/layer.tar", data=i.layers[1]), entry("1/layer.tar", L, linkname="../2/layer.tar")]
    path = BENCH.path("archive")
    with open(path, "wb") as f:
        f.write(tar_bytes(entries))
    r, _ = run_import(path)
    assert r.returncode == 0, r.stderr.decode()


def check_import_hostile():
    i = Image(b"1", {})
    good = layout(i)

    def fails(files, code, text, form="pax"):
        r, store = run_import(write_files(files, form))
        assert r.returncode == code and text in r.stderr.decode(), (r.returncode, r.stderr)
        for d in ("layers", "meta", "blobs/sha256"):
            assert not os.path.isdir(f"{store}/{d}") or not os.listdir(f"{store}/{d}"), d

    for blob, code in ((i.config, DATA_LOSS), (i.manifest, DATA_LOSS),
                       (gzip.compress(i.layers[1]), DATA_LOSS)):
        name = f"blobs/sha256/{digest(blob)[7:]}"
        if name in good:
            other = bytearray(blob)
            other[len(other) // 2] ^= 1
            r, _ = run_import(write_files({**good, name: bytes(other)}, "pax"))
            assert r.returncode in (code, INVALID), r.stderr
            without = {k: v for k, v in good.items() if k != name}
            fails(without, 15, name)
    fails({"x": b""}, INVALID, "neither")
    fails({**good, "index.json": b"{"}, INVALID, "index.json")
    fails({**good, "index.json": b"[" * 100000}, INVALID, "index.json")
    swapped = Image(b"1", {})
    swapped.config = swapped.config.replace(digest(i.layers[0]).encode(), digest(b"").encode())
    files = {"c": swapped.config, "a": i.layers[0], "b": i.layers[1],
             "manifest.json": json.dumps([{"Config": "c", "Layers": ["a", "b"]}]).encode()}
    fails(files, DATA_LOSS, "unpacks to")
    for bad in ("../../etc/passwd", "/etc/passwd", "none"):
        files["manifest.json"] = json.dumps([{"Config": bad, "Layers": ["a"]}]).encode()
        fails(files, 15, "", "pax")
        fails(files, 15, "", "dir")
    whole = tar_bytes([entry(n, data=d) for n, d in good.items()])
    r = random.Random(9)
    for n in range(60):
        path = BENCH.path("archive")
        bad = bytearray(whole)
        for _ in range(4):
            bad[r.randrange(len(bad))] = r.randrange(256)
        with open(path, "wb") as f:
            f.write(bad if n % 2 else bad[:r.randrange(len(bad))])
        res, _ = run_import(path)
        assert 0 <= res.returncode < 40, (res.returncode, res.stderr)


def check_jail():
    if JAIL is None or not ROOT:
        return
    tar = tar_bytes([entry("\u00fc", data=b"x" * 70000), entry("d/", D)])
    r, out = BENCH.convert(gzip.compress(tar), jail=True)
    assert r.returncode == 0, r.stderr
    assert r.stdout.split()[0].decode() == "sha256:" + hashlib.sha256(tar).hexdigest()
    plain = BENCH.layer(tar)
    with open(out, "rb") as a, open(plain, "rb") as b:
        assert a.read() == b.read()
    refused([entry("../x", data=b"")], INVALID, "..", jail=True)


def check_jail_confines():
    """What the unpacker may do, read from the kernel while it waits for more of the tar."""
    if JAIL is None or not ROOT or SECCOMP == "0":
        return
    out = BENCH.path("erofs")
    with subprocess.Popen([TOOL, "convert", UNPACK, "1000000", out, JAIL, JAIL_UID],
                          stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as tool:
        tool.stdin.write(tar_bytes([entry("a", data=b"x")])[:512])
        tool.stdin.flush()
        status, pid = {}, 0
        end = time.monotonic() + 10
        while status.get("Seccomp") != SECCOMP and time.monotonic() < end:
            with open(f"/proc/{tool.pid}/task/{tool.pid}/children") as f:
                children = f.read().split()
            try:
                for pid in children:
                    with open(f"/proc/{pid}/status") as f:
                        status = dict(x.rstrip("\n").split(":\t", 1) for x in f if ":\t" in x)
                    if status.get("Name") == "aspis-unpack":
                        break
            except OSError:
                continue
        try:
            assert status["Name"] == "aspis-unpack" and status["Seccomp"] == SECCOMP, status
            assert status["Uid"].split() == [JAIL_UID] * 4 == status["Gid"].split(), status["Uid"]
            for caps in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(status[caps], 16) == 0, caps
            assert status["NoNewPrivs"] == "1" and status["Groups"].strip() == ""
            for ns in ("mnt", "pid", "net", "ipc", "uts"):
                assert os.readlink(f"/proc/{pid}/ns/{ns}") != os.readlink(f"/proc/self/ns/{ns}"), ns
            seen = sorted(os.listdir(f"/proc/{pid}/root"))
            assert set(seen) <= {"aspis-unpack", "dev", "etc", "lib", "lib64", "usr"}, seen
            assert os.listdir(f"/proc/{pid}/root/etc") in ([], ["ld.so.cache"])
            fds = {n: os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")}
            assert set(fds) == {"0", "1", "2", "3", "4"} and fds["3"] == out, fds
        finally:
            tool.stdin.close()


def main():
    checks = [(f"random layers, seed {s}", lambda s=s: check_random(s, 4, 40)) for s in range(24)]
    checks += [("40 random layers", lambda: check_random(1000, 40, 25))]
    checks += [(name[6:].replace("_", " "), fn) for name, fn in sorted(globals().items())
               if name.startswith("check_") and name != "check_random"]
    if len(sys.argv) > 4:
        checks = [c for c in checks if sys.argv[4] in c[0]]
    print(f"1..{len(checks)}")
    failed = 0
    for n, (name, check) in enumerate(checks, 1):
        try:
            check()
            print(f"ok {n} - {name}", flush=True)
        except (AssertionError, subprocess.CalledProcessError, OSError) as e:
            failed += 1
            print(f"not ok {n} - {name}")
            for line in str(e).splitlines() or [repr(e)]:
                print("# " + line.encode("ascii", "backslashreplace").decode(), flush=True)
    BENCH.close()
    return 1 if failed else 0


sys.exit(main())
