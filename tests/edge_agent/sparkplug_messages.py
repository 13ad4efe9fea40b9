"""Sparkplug B messages as the ``protobuf`` package writes them, from a descriptor built here.

Numbers and types are those of Eclipse Tahu's ``sparkplug_b.proto``, so that what our decoder is
tested with was not encoded by us.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TYPES = {
    name: getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("uint32", "uint64", "float", "double", "bool", "string", "bytes")
}
# message → field: (number, type, "*" repeated / "?" of the oneof "value" / "")
_MESSAGES: dict[str, dict[str, tuple[int, str, str]]] = {
    "PropertyValue": {
        "type": (1, "uint32", ""),
        "is_null": (2, "bool", ""),
        "int_value": (3, "uint32", "?"),
        "long_value": (4, "uint64", "?"),
        "string_value": (8, "string", "?"),
        "propertyset_value": (9, "PropertySet", "?"),
    },
    "PropertySet": {"keys": (1, "string", "*"), "values": (2, "PropertyValue", "*")},
    "Template": {
        "version": (1, "string", ""),
        "metrics": (2, "Metric", "*"),
        "template_ref": (4, "string", ""),
    },
    "Metric": {
        "name": (1, "string", ""),
        "alias": (2, "uint64", ""),
        "timestamp": (3, "uint64", ""),
        "datatype": (4, "uint32", ""),
        "is_historical": (5, "bool", ""),
        "is_transient": (6, "bool", ""),
        "is_null": (7, "bool", ""),
        "properties": (9, "PropertySet", ""),
        "int_value": (10, "uint32", "?"),
        "long_value": (11, "uint64", "?"),
        "float_value": (12, "float", "?"),
        "double_value": (13, "double", "?"),
        "boolean_value": (14, "bool", "?"),
        "string_value": (15, "string", "?"),
        "bytes_value": (16, "bytes", "?"),
        "template_value": (18, "Template", "?"),
    },
    "Payload": {
        "timestamp": (1, "uint64", ""),
        "metrics": (2, "Metric", "*"),
        "seq": (3, "uint64", ""),
        "uuid": (4, "string", ""),
        "body": (5, "bytes", ""),
    },
}


def _payload() -> Any:
    proto = descriptor_pb2.FileDescriptorProto(
        name="sparkplug_for_tests.proto", package="sparkplug_for_tests", syntax="proto2"
    )
    for name, fields in _MESSAGES.items():
        message = proto.message_type.add(name=name)
        if any(kind == "?" for _, _, kind in fields.values()):
            message.oneof_decl.add(name="value")
        for field, (number, of, kind) in fields.items():
            made = message.field.add(name=field, number=number, label=3 if kind == "*" else 1)
            if of in _TYPES:
                made.type = _TYPES[of]
            else:
                made.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
                made.type_name = f".sparkplug_for_tests.{of}"
            if kind == "?":
                made.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("sparkplug_for_tests.Payload")
    )


Payload = _payload()


def payload(seq: int | None, *metrics: dict[str, Any], timestamp: int | None = None) -> bytes:
    """A message. ``properties`` of a metric: name → int value."""
    made = Payload()
    if seq is not None:
        made.seq = seq
    if timestamp is not None:
        made.timestamp = timestamp
    for given in metrics:
        metric = made.metrics.add()
        for key, value in given.items():
            if key == "properties":
                for name, number in value.items():
                    metric.properties.keys.append(name)
                    metric.properties.values.add(type=3, int_value=number)
            elif key == "template_value":
                metric.template_value.metrics.add(name=value, int_value=1)
            else:
                setattr(metric, key, value)
    data: bytes = made.SerializeToString()
    return data
