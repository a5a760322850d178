"""A CRI client for the tests: the real protocol over the real socket, nothing of the product's code.

Messages come from proto/cri/v1/api.proto, compiled for Python once per session.
"""
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc

# Its handlers around fork() wait for ever now and then; children here only execute programs.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

ROOT = Path(__file__).resolve().parents[2]
MAX_MESSAGE = 16 << 20


def _load():
    out = tempfile.mkdtemp(prefix="aspis-pb-")
    proto = ROOT / "proto" / "cri" / "v1"
    subprocess.run(["protoc", f"--python_out={out}", f"--proto_path={proto}", "api.proto"], check=True)
    sys.path.insert(0, out)
    return importlib.import_module("api_pb2")


pb = _load()


def _methods():
    found = {}
    for name in ("RuntimeService", "ImageService"):
        service = pb.DESCRIPTOR.services_by_name[name]
        for m in service.methods:
            found[m.name] = (f"/{service.full_name}/{m.name}", getattr(pb, m.input_type.name),
                             getattr(pb, m.output_type.name))
    return found


METHODS = _methods()


class Client:
    """client.Version(version="v1") sends a VersionRequest and gives the VersionResponse; deadline is gRPC's, in seconds."""

    def __init__(self, socket):
        self.channel = grpc.insecure_channel(
            f"unix://{socket}",
            options=[("grpc.max_receive_message_length", MAX_MESSAGE),
                     ("grpc.max_send_message_length", 64 << 20)])

    def __getattr__(self, name):
        path, request, reply = METHODS[name]

        def call(message=None, deadline=240, **fields):
            stub = self.channel.unary_unary(path, request_serializer=request.SerializeToString,
                                            response_deserializer=reply.FromString)
            return stub(message if message is not None else request(**fields), timeout=deadline)

        return call

    def stream(self, name, deadline=60, **fields):
        """A server stream: an iterator of replies that can be cancelled."""
        path, request, reply = METHODS[name]
        stub = self.channel.unary_stream(path, request_serializer=request.SerializeToString,
                                         response_deserializer=reply.FromString)
        return stub(request(**fields), timeout=deadline)

    def raw(self, path, data, timeout=30):
        """Any bytes to any path; gives the reply's bytes."""
        stub = self.channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
        return stub(data, timeout=timeout)

    def close(self):
        self.channel.close()


def sandbox_config(name, namespace="test", uid=None, attempt=0, log_directory="", **more):
    """A pod as kubelet makes it by default: own network and ipc, one process namespace per container."""
    more.setdefault("hostname", name)
    more.setdefault("linux", pb.LinuxPodSandboxConfig(
        security_context=pb.LinuxSandboxSecurityContext(
            namespace_options=pb.NamespaceOption(pid=pb.CONTAINER))))
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=name, namespace=namespace, uid=uid or f"uid-{name}",
                                       attempt=attempt),
        log_directory=str(log_directory), **more)


def container_config(name, image, command=(), args=(), attempt=0, pid=pb.CONTAINER, security=None,
                     resources=None, **more):
    security = security or {}
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name, attempt=attempt),
        image=pb.ImageSpec(image=image),
        command=list(command), args=list(args), log_path=more.pop("log_path", f"{name}/{attempt}.log"),
        linux=pb.LinuxContainerConfig(
            resources=pb.LinuxContainerResources(**(resources or {})),
            security_context=pb.LinuxContainerSecurityContext(
                namespace_options=pb.NamespaceOption(pid=pid), **security)),
        **more)
