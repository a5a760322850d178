"""S5: every string a client can send, in every place that has one, is data: taken as it is or refused as the client's mistake.
The places come from the protocol's own description, so that a new field is tested by being there."""
import os

import grpc
import pytest

from cri import METHODS, container_config, pb, sandbox_config

pytestmark = pytest.mark.once("refusals, long before a pod is made")

CODE = grpc.StatusCode
# A client's mistake, or a state that it can see. Not among them: INTERNAL, UNKNOWN, UNAVAILABLE, DATA_LOSS.
REFUSED = {CODE.INVALID_ARGUMENT, CODE.NOT_FOUND, CODE.FAILED_PRECONDITION, CODE.UNIMPLEMENTED, CODE.RESOURCE_EXHAUSTED,
           CODE.ALREADY_EXISTS, CODE.OUT_OF_RANGE, CODE.PERMISSION_DENIED}
MARK = "/tmp/aspis-pwned"
SHELL = f"a;touch {MARK} $(touch {MARK}) `touch {MARK}` | b,c=d 'q\" \\ %s%n ../../x"
PLACE = "PLACEHOLDER"
# What is sent in place of it: a shell's, several lines, what is no UTF-8, a NUL, a long one, QEMU's own separators.
VALUES = [SHELL.encode(), b"a\nb\r\n\x1b[2Jc", b"\xff\xfe\xc0\x80", b"a\0b", b"x" * (4 << 20), b"x,if=none,file=/etc/shadow,,id=a"]
DEPTH = 6


def places(message, path=()):
    """The path of every string, bytes and map field below a message."""
    for f in message.fields:
        if f.type in (f.TYPE_STRING, f.TYPE_BYTES):
            yield (*path, f)
        elif f.type == f.TYPE_MESSAGE and len(path) < DEPTH:
            if f.message_type.GetOptions().map_entry:
                yield (*path, f)
            else:
                yield from places(f.message_type, (*path, f))


def put(request, path):
    at = request
    for f in path[:-1]:
        at = getattr(at, f.name).add() if f.label == f.LABEL_REPEATED else getattr(at, f.name)
    f = path[-1]
    if f.type == f.TYPE_MESSAGE:  # a map of strings
        getattr(at, f.name)[PLACE] = PLACE
        return
    value = PLACE.encode() if f.type == f.TYPE_BYTES else PLACE
    if f.label == f.LABEL_REPEATED:
        getattr(at, f.name).append(value)
    else:
        setattr(at, f.name, value)


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def read_varint(data, at):
    n = shift = 0
    while True:
        b = data[at]
        at += 1
        n |= (b & 127) << shift
        shift += 7
        if not b & 128:
            return n, at


def replace(data, value, message):
    """The wire bytes with every PLACEHOLDER replaced, and the lengths around it made to fit: a protobuf that Python's own
    library would not write."""
    out, at = b"", 0
    while at < len(data):
        key, after = read_varint(data, at)
        f = message.fields_by_number.get(key >> 3)
        kind = key & 7
        if kind == 2:
            n, body = read_varint(data, after)
            inner = data[body:body + n]
            if f.type == f.TYPE_MESSAGE:
                inner = replace(inner, value, f.message_type)
            elif inner == PLACE.encode():
                inner = value
            out += varint(key) + varint(len(inner)) + inner
            at = body + n
        else:
            end = read_varint(data, after)[1] if kind == 0 else after + (8 if kind == 1 else 4)
            out += data[at:end]
            at = end
    return out


def tried(daemon, name, base, undo):
    """Sends every value in every place; undo(reply) takes back what was taken. Gives how many there were."""
    path, request_type, reply_type = METHODS[name]
    seen = {"taken": 0, "refused": 0, "places": 0}
    wrong = []
    for place in places(request_type.DESCRIPTOR):
        where = ".".join(f.name for f in place)
        seen["places"] += 1
        request = request_type()
        request.CopyFrom(base)
        put(request, place)
        data = request.SerializeToString()
        for value in VALUES:
            try:
                reply = reply_type.FromString(daemon.client.raw(path, replace(data, value, request_type.DESCRIPTOR), timeout=60))
            except grpc.RpcError as e:
                seen["refused"] += 1
                if e.code() not in REFUSED:
                    wrong.append(f"{where} = {value[:30]!r}: {e.code()} {e.details()[:300]}")
                elif len(e.details()) > 8192 or not all(c.isprintable() or c in "\n\t" for c in e.details()):
                    wrong.append(f"{where} = {value[:30]!r}: the error is no text: {e.details()[:300]!r}")
            else:
                seen["taken"] += 1
                undo(reply)
            assert not os.path.exists(MARK), f"{where} = {value[:30]!r} was run by a shell"
    assert not wrong, "\n".join(wrong)
    daemon.client.Version()
    return seen


def test_strings_of_a_pod(daemon):
    def undo(reply):
        daemon.client.StopPodSandbox(pod_sandbox_id=reply.pod_sandbox_id)
        daemon.client.RemovePodSandbox(pod_sandbox_id=reply.pod_sandbox_id)
    seen = tried(daemon, "RunPodSandbox", pb.RunPodSandboxRequest(config=sandbox_config("plain")), undo)
    assert seen["places"] > 20 and seen["taken"] > 10 and seen["refused"] > 50, seen
    assert not daemon.client.ListPodSandbox().items


def test_strings_of_a_container(daemon, pod):
    base = pb.CreateContainerRequest(pod_sandbox_id=pod.id, sandbox_config=pod.config,
                                     config=container_config("plain", pod.image, ["sleep", "1000"]))

    def undo(reply):
        daemon.client.RemoveContainer(container_id=reply.container_id)
    seen = tried(daemon, "CreateContainer", base, undo)
    assert seen["places"] > 60 and seen["taken"] > 10 and seen["refused"] > 100, seen
    assert not daemon.client.ListContainers().containers
    assert pod.run("after", "true").exit_code == 0


# With those two, and what makes nothing, every call that takes a string.
OTHERS = sorted(n for n, (_, request, _) in METHODS.items()
                if n not in ("RunPodSandbox", "CreateContainer") and not n.startswith(("Stream", "GetContainerEvents"))
                and any(True for _ in places(request.DESCRIPTOR)))


@pytest.mark.parametrize("name", OTHERS)
def test_strings_of_every_other_call(daemon, pod, name):
    seen = tried(daemon, name, METHODS[name][1](), lambda reply: None)
    assert seen["places"] >= 1
    assert pod.status().state == pb.SANDBOX_READY
