"""The official Python SDK as a peer of the tests.

Reads one JSON request from standard input and answers on standard output:
{"messages": [{"form": "json" | "binary" | "structured", "headers": {..}, "body": base64}, ..]}
gives, for each message, what the SDK understood and how it writes that event itself, in all three forms.
"""

import base64
import json
import sys
from datetime import datetime

from cloudevents.core.bindings import http
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

FORMAT = JSONFormat()


def read(message):
    body = base64.b64decode(message["body"])
    if message["form"] == "json":
        return FORMAT.read(CloudEvent, body)
    received = http.HTTPMessage(headers=message["headers"], body=body)
    return http.from_http(received, FORMAT, CloudEvent)


def described(event):
    data = event.get_data()
    attributes = {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in event.get_attributes().items()
    }
    if isinstance(data, bytes):
        return {"attributes": attributes, "binary": base64.b64encode(data).decode()}
    return {"attributes": attributes, "data": data}


def packed(form, headers, body):
    return {"form": form, "headers": headers, "body": base64.b64encode(body).decode()}


def written(event):
    binary = http.to_binary(event, FORMAT)
    structured = http.to_structured(event, FORMAT)
    return [
        packed("json", {}, FORMAT.write(event)),
        packed("binary", binary.headers, binary.body),
        packed("structured", structured.headers, structured.body),
    ]


events = [read(message) for message in json.load(sys.stdin)["messages"]]
answers = [{"understood": described(event), "written": written(event)} for event in events]
# The SDK has no batch of its own; this is how its users make one.
batch = b"[" + b",".join(FORMAT.write(event) for event in events) + b"]"
json.dump({"answers": answers, "batch": base64.b64encode(batch).decode()}, sys.stdout)
