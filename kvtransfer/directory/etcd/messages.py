"""The part of etcd's API that we use, with the field numbers of its rpc.proto and kv.proto.

The messages are made when this is imported, in a pool of their own: no generated code has to fit
the installed protobuf, and nothing collides with another etcd client in the process. On the wire a
message has no package, an enum is an int32, and a field of a oneof is like any other.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from google.protobuf.descriptor_pb2 import (  # type: ignore[import-untyped]
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool  # type: ignore[import-untyped]
from google.protobuf.message_factory import GetMessageClass  # type: ignore[import-untyped]

_PACKAGE = "stafette.etcd"
_FIELDS = {
    "KeyValue": "bytes key=1, int64 mod_revision=3, bytes value=5, int64 lease=6",
    "Header": "int64 revision=3",
    "RangeRequest": "bytes key=1, bytes range_end=2, int64 limit=3, int64 revision=4",
    "RangeResponse": "Header header=1, KeyValue* kvs=2, bool more=3",
    "PutRequest": "bytes key=1, bytes value=2, int64 lease=3",
    "Compare": "int32 result=1, int32 target=2, bytes key=3, int64 mod_revision=6, int64 lease=8",
    "RequestOp": "RangeRequest request_range=1, PutRequest request_put=2",
    "ResponseOp": "RangeResponse response_range=1",
    "TxnRequest": "Compare* compare=1, RequestOp* success=2, RequestOp* failure=3",
    "TxnResponse": "bool succeeded=2, ResponseOp* responses=3",
    "LeaseGrantRequest": "int64 TTL=1, int64 ID=2",
    "LeaseGrantResponse": "int64 ID=2, int64 TTL=3",
    "LeaseKeepAliveRequest": "int64 ID=1",
    "LeaseKeepAliveResponse": "int64 ID=2, int64 TTL=3",
    "LeaseRevokeRequest": "int64 ID=1",
    "LeaseRevokeResponse": "",
    "AuthenticateRequest": "string name=1, string password=2",
    "AuthenticateResponse": "string token=2",
    "WatchCreateRequest": "bytes key=1, bytes range_end=2, int64 start_revision=3, bool fragment=8",
    "WatchProgressRequest": "",
    "WatchRequest": "WatchCreateRequest create_request=1, WatchProgressRequest progress_request=3",
    "Event": "int32 type=1, KeyValue kv=2",
    "WatchResponse": (
        "Header header=1, bool created=3, bool canceled=4, int64 compact_revision=5, "
        "string cancel_reason=6, Event* events=11"
    ),
}
_SCALARS = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "string": FieldDescriptorProto.TYPE_STRING,
}

COMPARE_MOD_REVISION, COMPARE_LEASE = 2, 4  # of Compare.target; result 0 asks for equality
EVENT_DELETE = 1


def _make_messages() -> SimpleNamespace:
    """Return the classes, by their names."""
    file = FileDescriptorProto(name="stafette_etcd.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _FIELDS.items():
        file.message_type.add(name=name, field=map(_field, filter(None, fields.split(", "))))
    pool = DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return SimpleNamespace(
        **{name: GetMessageClass(find(f"{_PACKAGE}.{name}")) for name in _FIELDS}
    )


def _field(text: str) -> Any:
    """Read `TYPE NAME=NUMBER`; with a star behind the type there may be many."""
    kind, name, number = text.replace("=", " ").split()
    label = "LABEL_REPEATED" if kind.endswith("*") else "LABEL_OPTIONAL"
    field = FieldDescriptorProto(name=name, number=int(number), label=label)
    kind = kind.rstrip("*")
    field.type = _SCALARS.get(kind, FieldDescriptorProto.TYPE_MESSAGE)
    if kind not in _SCALARS:
        field.type_name = f".{_PACKAGE}.{kind}"
    return field


pb = _make_messages()


@dataclass(frozen=True, slots=True)
class Method:
    path: str
    answer: Any  # the class of the message that comes back


RANGE = Method("/etcdserverpb.KV/Range", pb.RangeResponse)
TXN = Method("/etcdserverpb.KV/Txn", pb.TxnResponse)
GRANT = Method("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantResponse)
# A stream in the API; whoever asks once and ends its side gets one answer and the end.
KEEP_ALIVE = Method("/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveResponse)
REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeResponse)
AUTHENTICATE = Method("/etcdserverpb.Auth/Authenticate", pb.AuthenticateResponse)
WATCH = Method("/etcdserverpb.Watch/Watch", pb.WatchResponse)
