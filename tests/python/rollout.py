"""A whole rollout by a generic gRPC client.

Knows the controller's address and a client certificate, and nothing else: no generated stubs, no code of
Upfleet. Every message comes from server reflection. Publishes a release, plans, rolls out, watches to the
end, and prints what it saw as JSON.

usage: rollout.py ADDRESS SERVER_NAME CA CERT KEY COMPONENT VERSION SEQUENCE FILE
"""

import hashlib
import json
import sys
import uuid

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

DEADLINE = 120


class Service:
    """A service by its full name; methods are called with dictionaries in proto3 JSON."""

    def __init__(self, channel, pool, name):
        self.channel = channel
        self.descriptor = pool.FindServiceByName(name)

    def _method(self, name):
        method = self.descriptor.methods_by_name[name]
        request = message_factory.GetMessageClass(method.input_type)
        response = message_factory.GetMessageClass(method.output_type)
        path = f"/{self.descriptor.full_name}/{name}"
        return path, request, response

    def call(self, name, body):
        path, request, response = self._method(name)
        stub = self.channel.unary_unary(
            path, request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )
        return json_format.MessageToDict(stub(json_format.ParseDict(body, request()), timeout=DEADLINE))

    def send(self, name, bodies):
        path, request, response = self._method(name)
        stub = self.channel.stream_unary(
            path, request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )
        messages = (json_format.ParseDict(body, request()) for body in bodies)
        return json_format.MessageToDict(stub(messages, timeout=DEADLINE))

    def watch(self, name, body):
        path, request, response = self._method(name)
        stub = self.channel.unary_stream(
            path, request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )
        for message in stub(json_format.ParseDict(body, request()), timeout=DEADLINE):
            yield json_format.MessageToDict(message)


def base64(data):
    import base64 as codec

    return codec.b64encode(data).decode()


def read(path):
    with open(path, "rb") as file:
        return file.read()


def main():
    address, server_name, ca, cert, key, component, version, sequence, path = sys.argv[1:]
    credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(cert))
    channel = grpc.secure_channel(
        address, credentials, options=[("grpc.ssl_target_name_override", server_name)]
    )
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = descriptor_pool.DescriptorPool(database)
    services = sorted(database.get_services())
    artifacts = Service(channel, pool, "upfleet.v1.ArtifactService")
    releases = Service(channel, pool, "upfleet.v1.ReleaseService")
    rollouts = Service(channel, pool, "upfleet.v1.RolloutService")

    content = read(path)
    digest = hashlib.sha256(content)
    wire_digest = {"algorithm": "DIGEST_ALGORITHM_SHA256", "value": base64(digest.digest())}
    artifacts.send(
        "UploadArtifact",
        [
            {"start": {"digest": wire_digest, "sizeBytes": len(content)}},
            {"data": base64(content)},
            {"commit": {}},
        ],
    )
    manifest = {
        "format": 1,
        "component": component,
        "version": version,
        "sequence": int(sequence),
        "kind": "binary",
        "artifacts": [
            {"platform": {"os": "linux", "arch": "any"}, "sha256": digest.hexdigest(), "size": len(content)}
        ],
    }
    release = releases.call(
        "CreateRelease", {"manifest": base64(json.dumps(manifest).encode()), "requestId": str(uuid.uuid4())}
    )["release"]

    spec = {
        "component": component,
        "selector": "*",
        "install": {"release": release["name"]},
        "policy": {"waves": [{"size": {"count": 1}}, {"size": {"percent": 100}}]},
    }
    plan = rollouts.call("CreateRollout", {"spec": spec, "validateOnly": True})["plan"]
    # The answer says which seed the plan was made with, where the server chose one.
    created = rollouts.call(
        "CreateRollout",
        {"spec": spec, "expectedPlanDigest": plan["planDigest"], "requestId": str(uuid.uuid4())},
    )["rollout"]
    rollouts.call("StartRollout", {"name": created["name"]})

    states, upgrades = [], {}
    for change in rollouts.watch("WatchRollout", {"name": created["name"]}):
        if "upgrade" in change:
            upgrade = change["upgrade"]
            upgrades.setdefault(upgrade["node"], []).append(upgrade["state"])
        if "rollout" in change:
            states.append(change["rollout"]["state"])
            if states[-1] in ("STATE_SUCCEEDED", "STATE_HALTED"):
                break
    print(json.dumps({"services": services, "rollout": created["name"], "states": states, "upgrades": upgrades}))


if __name__ == "__main__":
    main()
