"""Stand-ins for the clouds' APIs, with the faults that their conformance is held to.

A `Cloud` keeps machines and decides what goes wrong. A `Dialect` reads one provider's requests and
writes its answers, as the provider documents them.
"""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from xml.sax.saxutils import escape

CREATED = "2026-01-31T00:00:00"
ADDRESS = "192.0.2.7"


@dataclass
class Record:
    """A machine. `tags` are in the form in which the provider keeps them."""

    id: str
    name: str
    tags: Any
    hidden: int
    """How many further lists don't show it."""


@dataclass
class Cloud:
    """A provider's machines, and what goes wrong at it."""

    records: dict[str, Record] = field(default_factory=dict)
    page_size: int = 100
    lists_late: int = 0
    """How many lists don't show a new machine."""
    drops_tags: bool = False
    refuses_deletes: bool = False
    loses_answers: bool = False
    """Whether the connection closes after a machine was made."""
    limited: int = 0
    """How many further requests are answered by a rate limit."""
    down: int = 0
    """How many further requests get no answer at all."""
    full: int = 0
    """How many further creates find no room."""
    made: int = 0
    user_data: list[str] = field(default_factory=list)

    def make(self, name: str, tags: Any, user_data: str) -> Record:
        self.made += 1
        self.user_data.append(user_data)
        kept = type(tags)() if self.drops_tags else tags
        record = Record(str(1000 + self.made), name, kept, self.lists_late)
        self.records[record.id] = record
        return record

    def listed(self) -> list[Record]:
        """What a new list shows."""
        shown = [record for record in self.records.values() if not record.hidden]
        for record in self.records.values():
            record.hidden = max(0, record.hidden - 1)
        return shown

    def page(self, number: int) -> tuple[list[Record], int]:
        """The records of that page, counted from 1, and how many pages there are."""
        if number == 1:
            self._list = self.listed()
        start = (number - 1) * self.page_size
        pages = max(1, -(-len(self._list) // self.page_size))
        return self._list[start : start + self.page_size], pages


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    body: str

    @property
    def data(self) -> Any:
        return json.loads(self.body)

    @property
    def last(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Dialect(ABC):
    """One provider's API. `create`, `delete` and so on are told apart by `operation`."""

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, str]]
    creates: ClassVar[tuple[str, str]]
    """The method and the path that make a machine, as a regular expression."""
    deletes: ClassVar[tuple[str, str]]
    too_many: ClassVar[Answer] = Answer(429, {"message": "Too many requests"})
    refused: ClassVar[Answer] = Answer(422, {"message": "the machine is protected"})
    full: ClassVar[Answer] = Answer(422, {"message": "not enough capacity in this region"})

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.address = ""

    def endpoint(self) -> str:
        return self.address

    def is_create(self, request: Request) -> bool:
        return _matches(request, self.creates)

    def is_delete(self, request: Request) -> bool:
        return _matches(request, self.deletes)

    @abstractmethod
    def create(self, request: Request) -> Answer: ...

    @abstractmethod
    def delete(self, request: Request) -> Answer: ...

    @abstractmethod
    def other(self, request: Request) -> Answer:
        """Lists, tags, and whatever else the driver asks for."""


def _matches(request: Request, operation: tuple[str, str]) -> bool:
    method, path = operation
    return request.method == method and bool(re.fullmatch(path, request.path))


class DigitalOceanApi(Dialect):
    name = "digitalocean"
    settings: ClassVar = {"machine_access_secret": "token", "machine_region": "fra1"}
    creates = ("POST", "/v2/droplets")
    deletes = ("DELETE", "/v2/droplets/[0-9]+")

    def create(self, request: Request) -> Answer:
        data = request.data
        record = self.cloud.make(data["name"], list(data["tags"]), data["user_data"])
        return Answer(202, {"droplet": self._shown(record)})

    def delete(self, request: Request) -> Answer:
        gone = self.cloud.records.pop(request.last, None)
        return Answer(204) if gone else Answer(404, {"message": "not found"})

    def other(self, request: Request) -> Answer:
        if request.path == "/v2/droplets":
            records, pages = self.cloud.page(int(request.query.get("page", "1")))
            links = {}
            if pages > 1:
                links = {"pages": {"last": f"{self.address}/v2/droplets?page={pages}"}}
            return Answer(200, {"droplets": [*map(self._shown, records)], "links": links})
        if request.path == "/v2/tags":
            return Answer(201, {"tag": {"name": request.data["name"]}})
        tag = urllib.parse.unquote(request.path.split("/")[3])
        if request.method == "DELETE":
            for record in self.cloud.records.values():
                record.tags = [kept for kept in record.tags if kept != tag]
            return Answer(204)
        for resource in request.data["resources"]:
            self.cloud.records[resource["resource_id"]].tags.append(tag)
        return Answer(204)

    def _shown(self, record: Record) -> dict[str, Any]:
        return {
            "id": int(record.id),
            "name": record.name,
            "status": "active",
            "created_at": f"{CREATED}Z",
            "networks": {"v4": [{"type": "public", "ip_address": ADDRESS}]},
            "tags": record.tags,
            "region": {"name": "fra1"},
            "size_slug": "s-1vcpu-1gb",
        }


class LinodeApi(Dialect):
    name = "linode"
    settings: ClassVar = {"machine_access_secret": "token", "machine_region": "eu-central"}
    creates = ("POST", "/v4/linode/instances")
    deletes = ("DELETE", "/v4/linode/instances/[0-9]+")
    too_many = Answer(429, {"errors": [{"reason": "Too many requests"}]})
    refused = Answer(400, {"errors": [{"reason": "the machine is protected"}]})
    full = Answer(400, {"errors": [{"reason": "Insufficient capacity in this region"}]})

    def create(self, request: Request) -> Answer:
        data = request.data
        user_data = data["metadata"]["user_data"]
        return Answer(200, self._shown(self.cloud.make(data["label"], data["tags"], user_data)))

    def delete(self, request: Request) -> Answer:
        gone = self.cloud.records.pop(request.last, None)
        if gone:
            return Answer(200, {})
        return Answer(404, {"errors": [{"reason": "Not found"}]})

    def other(self, request: Request) -> Answer:
        if request.method == "PUT":
            record = self.cloud.records[request.last]
            record.tags = request.data["tags"]
            return Answer(200, self._shown(record))
        number = int(request.query.get("page", "1"))
        records, pages = self.cloud.page(number)
        return Answer(200, {"data": [*map(self._shown, records)], "page": number, "pages": pages})

    def _shown(self, record: Record) -> dict[str, Any]:
        nothing: dict[str, Any] = dict.fromkeys(
            ("hypervisor", "specs", "alerts", "backups", "watchdog_enabled", "image", "ipv6")
        )
        return nothing | {
            "id": int(record.id),
            "label": record.name,
            "status": "running",
            "created": CREATED,
            "ipv4": [ADDRESS],
            "tags": record.tags,
            "region": "eu-central",
            "type": "g6-nanode-1",
        }


class VultrApi(Dialect):
    name = "vultr"
    settings: ClassVar = {"machine_access_secret": "token", "machine_region": "fra"}
    creates = ("POST", "/v2/instances")
    deletes = ("DELETE", "/v2/instances/[^/]+")
    too_many = Answer(429, {"error": "Rate limit reached", "status": 429})
    refused = Answer(400, {"error": "the machine is protected", "status": 400})
    full = Answer(400, {"error": "Insufficient capacity in this region", "status": 400})

    def create(self, request: Request) -> Answer:
        data = request.data
        record = self.cloud.make(data["label"], data["tags"], data["user_data"])
        return Answer(202, {"instance": self._shown(record)})

    def delete(self, request: Request) -> Answer:
        gone = self.cloud.records.pop(request.last, None)
        return Answer(204) if gone else Answer(404, {"error": "not found", "status": 404})

    def other(self, request: Request) -> Answer:
        if request.method == "PATCH":
            record = self.cloud.records[request.last]
            record.tags = request.data["tags"]
            return Answer(202, {"instance": self._shown(record)})
        number = int(request.query.get("cursor") or "1")
        records, pages = self.cloud.page(number)
        following = str(number + 1) if number < pages else ""
        meta = {"total": len(records), "links": {"next": following, "prev": ""}}
        return Answer(200, {"instances": [*map(self._shown, records)], "meta": meta})

    def _shown(self, record: Record) -> dict[str, Any]:
        texts = dict.fromkeys(
            ("v6_main_ip", "netmask_v4", "gateway_v4", "v6_network", "image_id", "os"), ""
        )
        numbers = dict.fromkeys(
            ("ram", "disk", "v6_network_size", "app_id", "vcpu_count", "allowed_bandwidth"), 1
        )
        # Without the former `tag`.
        return {
            **texts,
            **numbers,
            "id": record.id,
            "label": record.name,
            "main_ip": ADDRESS,
            "internal_ip": "",
            "plan": "vc2-1c-1gb",
            "os_id": 2136,
            "date_created": f"{CREATED}+00:00",
            "region": "fra",
            "features": [],
            "tags": record.tags,
            "status": "active",
            "power_status": "running",
            "server_status": "ok",
            "firewall_group_id": "",
        }


class OpenStackApi(Dialect):
    name = "openstack"
    settings: ClassVar = {
        "machine_access_key": "user",
        "machine_access_secret": "password",
        "machine_project": "project",
        "machine_region": "one",
    }
    creates = ("POST", "/compute/servers")
    deletes = ("DELETE", "/compute/servers/[^/]+")
    too_many = Answer(429, {"overLimit": {"code": 429, "message": "Too many requests"}})
    refused = Answer(409, {"conflictingRequest": {"code": 409, "message": "it is locked"}})
    full = Answer(403, {"forbidden": {"code": 403, "message": "Quota exceeded for instances"}})

    def create(self, request: Request) -> Answer:
        data = request.data["server"]
        record = self.cloud.make(data["name"], data["metadata"], data["user_data"])
        return Answer(202, {"server": self._shown(record)})

    def delete(self, request: Request) -> Answer:
        gone = self.cloud.records.pop(request.last, None)
        return Answer(204) if gone else Answer(404, {"itemNotFound": {"message": "not found"}})

    def other(self, request: Request) -> Answer:
        if request.path == "/v3/auth/tokens":
            return Answer(201, self._token(), {"X-Subject-Token": "a-token"})
        if request.path == "/compute/servers/detail":
            number = int(request.query.get("marker", "1"))
            records, pages = self.cloud.page(number)
            links = []
            if number < pages:
                following = f"{self.address}/compute/servers/detail?marker={number + 1}"
                links = [{"rel": "next", "href": following}]
            return Answer(200, {"servers": [*map(self._shown, records)], "servers_links": links})
        if request.path == "/compute/flavors/detail":
            flavor = {"id": "1", "name": "small", "ram": 512, "disk": 1, "vcpus": 1, "swap": ""}
            more = {"OS-FLV-EXT-DATA:ephemeral": 0, "OS-FLV-DISABLED:disabled": False}
            shared = {"os-flavor-access:is_public": True, "rxtx_factor": 1.0}
            return Answer(200, {"flavors": [flavor | more | shared]})
        if request.path.endswith("/metadata"):
            record = self.cloud.records[request.path.split("/")[3]]
            record.tags = request.data["metadata"]
            return Answer(200, {"metadata": record.tags})
        if request.path == "/image/v2/images":
            image = {"id": "1", "name": "debian", "status": "active"}
            return Answer(200, {"images": [image | {"created_at": CREATED, "updated_at": CREATED}]})
        record = self.cloud.records[request.last]
        return Answer(200, {"server": self._shown(record)})

    def _token(self) -> dict[str, Any]:
        catalog = [
            {
                "type": kind,
                "name": name,
                "endpoints": [
                    {"region": "one", "interface": "public", "url": f"{self.address}/{kind}"}
                ],
            }
            for kind, name in (("compute", "nova"), ("image", "glance"), ("network", "neutron"))
        ]
        return {
            "token": {
                "expires_at": "2999-01-01T00:00:00.000000Z",
                "issued_at": f"{CREATED}.000000Z",
                "catalog": catalog,
                "roles": [],
                "user": {"id": "user", "name": "user"},
            }
        }

    def _shown(self, record: Record) -> dict[str, Any]:
        return {
            "id": record.id,
            "name": record.name,
            "status": "ACTIVE",
            "addresses": {"public": [{"addr": ADDRESS, "version": 4}]},
            "hostId": "host",
            "tenant_id": "project",
            "created": f"{CREATED}Z",
            "updated": f"{CREATED}Z",
            "metadata": record.tags,
            "links": [{"rel": "self", "href": f"{self.address}/compute/servers/{record.id}"}],
        }


def _ec2_error(status: int, code: str) -> Answer:
    error = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return Answer(status, f"<Response><Errors>{error}</Errors></Response>")


class Ec2Api(Dialect):
    name = "ec2"
    settings: ClassVar = {
        "machine_access_key": "AKIA",
        "machine_access_secret": "secret",
        "machine_region": "eu-west-1",
    }
    creates = ("RunInstances", "/")
    deletes = ("TerminateInstances", "/")
    too_many = _ec2_error(503, "RequestLimitExceeded")
    refused = _ec2_error(400, "OperationNotPermitted")
    full = _ec2_error(500, "InsufficientInstanceCapacity")

    def create(self, request: Request) -> Answer:
        query = request.query
        assert query["InstanceInitiatedShutdownBehavior"] == "terminate"
        tags = self._tags(query, "TagSpecification.1.Tag")
        record = self.cloud.make(tags["Name"], tags, query["UserData"])
        return self._answer("RunInstances", self._instances([record]))

    def delete(self, request: Request) -> Answer:
        number = request.query["InstanceId.1"]
        if self.cloud.records.pop(number, None) is None:
            return _ec2_error(400, "InvalidInstanceID.NotFound")
        state = "<currentState><name>shutting-down</name></currentState>"
        item = f"<item><instanceId>{number}</instanceId>{state}</item>"
        return self._answer("TerminateInstances", f"<instancesSet>{item}</instancesSet>")

    def other(self, request: Request) -> Answer:
        query = request.query
        if query["Action"] == "DescribeAddresses":
            return self._answer("DescribeAddresses", "<addressesSet></addressesSet>")
        if query["Action"] == "CreateTags":
            self.cloud.records[query["ResourceId.1"]].tags.update(self._tags(query, "Tag"))
            return self._answer("CreateTags", "<return>true</return>")
        number = int(query.get("NextToken", "1"))
        records, pages = self.cloud.page(number)
        # The filter by our owner's tag.
        shown = [record for record in records if "kestra-owner" in record.tags]
        items = f"<reservationSet><item>{self._instances(shown)}</item></reservationSet>"
        if number < pages:
            items += f"<nextToken>{number + 1}</nextToken>"
        return self._answer("DescribeInstances", items)

    def _instances(self, records: Sequence[Record]) -> str:
        return f"<instancesSet>{''.join(map(self._shown, records))}</instancesSet>"

    def _shown(self, record: Record) -> str:
        tags = "".join(
            f"<item><key>{escape(key)}</key><value>{escape(value)}</value></item>"
            for key, value in record.tags.items()
        )
        return (
            f"<item><instanceId>{record.id}</instanceId><imageId>ami-1</imageId>"
            "<instanceState><code>16</code><name>running</name></instanceState>"
            f"<ipAddress>{ADDRESS}</ipAddress><launchTime>{CREATED}.000Z</launchTime>"
            f"<tagSet>{tags}</tagSet></item>"
        )

    def _answer(self, action: str, inside: str) -> Answer:
        namespace = "http://ec2.amazonaws.com/doc/2016-11-15/"
        return Answer(200, f'<{action}Response xmlns="{namespace}">{inside}</{action}Response>')

    def _tags(self, query: Mapping[str, str], prefix: str) -> dict[str, str]:
        keys = {
            name.removesuffix(".Key"): value
            for name, value in query.items()
            if name.startswith(f"{prefix}.") and name.endswith(".Key")
        }
        return {key: query[f"{name}.Value"] for name, key in keys.items()}

    def is_create(self, request: Request) -> bool:
        return request.query.get("Action") == "RunInstances"

    def is_delete(self, request: Request) -> bool:
        return request.query.get("Action") == "TerminateInstances"


DIALECTS = (DigitalOceanApi, Ec2Api, LinodeApi, OpenStackApi, VultrApi)


@contextmanager
def served(dialect: Dialect) -> Iterator[None]:
    """Answer in that dialect, at an address on loopback, within the block."""
    cloud, busy = dialect.cloud, threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Else each answer's content waits until the client has acknowledged its head, which takes
        # 40 ms.
        disable_nagle_algorithm = True

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65_536)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            parts = urllib.parse.urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length).decode()
            query = dict(urllib.parse.parse_qsl(parts.query))
            if "form" in self.headers.get("Content-Type", ""):
                query |= dict(urllib.parse.parse_qsl(body))
            request = Request(self.command, parts.path, query, body)
            with busy:
                answer = _answer_to(dialect, request)
            if answer is None:
                self.close_connection = True
                return
            self._send(answer)

        def _send(self, answer: Answer) -> None:
            text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
            content = b"" if answer.status == 204 else text.encode()
            kind = "text/xml" if isinstance(answer.body, str) else "application/json"
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Type": kind}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    dialect.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        assert cloud is dialect.cloud


def _answer_to(dialect: Dialect, request: Request) -> Answer | None:
    """The answer to a request. None if the connection closes without one."""
    cloud = dialect.cloud
    if cloud.down:
        cloud.down -= 1
        return None
    if cloud.limited:
        cloud.limited -= 1
        return dialect.too_many
    if dialect.is_create(request):
        if cloud.full:
            cloud.full -= 1
            return dialect.full
        answer = dialect.create(request)
        return None if cloud.loses_answers else answer
    if dialect.is_delete(request):
        return dialect.refused if cloud.refuses_deletes else dialect.delete(request)
    return dialect.other(request)
