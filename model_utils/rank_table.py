"""HCCL rank tables: which process runs on which card of which server.

Three written forms are read: the current one ("1.0", and "1.2" of Atlas A3 super-pods) with
``server_list``, and the older ModelArts form without a version, with ``group_list``, in which
ranks are not numbered but follow from the order of the instances. Numbers may be written as
strings or as integers.
"""

import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_utils.errors import UserError
from model_utils.files import PathLike, write_json

FILE_NAME = "jobstart_hccl.json"  # what ModelArts writes into the folder it names
VERSIONS = ("1.0", "1.2")
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Rank:
    """One process of a distributed run.

    Attributes:
        rank_id: number in the whole run, 0 to size - 1.
        device_id: card number on its server, as written in the table.
        server_id: name or address of its server.
        local_index: 0, 1, ... among the ranks of the same server, by rank.
        device_ip: address of the card's network interface, "" if the table has none.
    """

    rank_id: int
    device_id: int
    server_id: str
    local_index: int
    device_ip: str = ""


@dataclass(frozen=True)
class RankTable:
    """A checked rank table.

    Attributes:
        ranks: all ranks, by ``rank_id``, which are 0 to ``size`` - 1.
        servers: server names in the table's order (of instances in the old form).
        version: "1.0", "1.2", or "0" for the old form.
        instances: server of each instance (pod) name; old form only.
    """

    ranks: tuple[Rank, ...]
    servers: tuple[str, ...]
    version: str
    instances: tuple[tuple[str, str], ...] = ()

    @property
    def size(self) -> int:
        """Number of ranks on all servers."""
        return len(self.ranks)

    def on_server(self, server_id: str) -> tuple[Rank, ...]:
        """Ranks of one server, by rank."""
        return tuple(rank for rank in self.ranks if rank.server_id == server_id)

    def this_server(self, server_id: str | int | None = None) -> str:
        """Name of the server this process runs on.

        Decided by, in this order: ``server_id``, the environment variable SERVER_ID (either may
        be an index into ``servers``, as ModelZoo's scripts have it, or a name), the only server of
        the table, ModelArts' instance name and host address, and at last this host's own names
        and addresses.

        Raises:
            UserError: the named server is not in the table, or none or several fit.
        """
        wanted = os.environ.get("SERVER_ID") if server_id is None else str(server_id)
        if wanted:
            return self._named_server(wanted)
        if len(self.servers) == 1:
            return self.servers[0]
        instance = os.environ.get("MA_CURRENT_INSTANCE_NAME") or os.environ.get(
            "BATCH_TASK_CURRENT_INSTANCE"
        )
        if instance in dict(self.instances):
            return dict(self.instances)[instance or ""]
        address = os.environ.get("MA_CURRENT_HOST_IP")
        if address in self.servers:
            return str(address)
        here = [server for server in self.servers if is_this_host(server)]
        if len(here) == 1:
            return here[0]
        found = f"{', '.join(here)} are all this host" if here else "none of them is this host"
        raise UserError(
            f"the rank table lists the servers {', '.join(self.servers)} and {found}; "
            f"set SERVER_ID to this server's position, 0 to {len(self.servers) - 1}"
        )

    def _named_server(self, wanted: str) -> str:
        if wanted in self.servers:
            return wanted
        if wanted.isdecimal() and int(wanted) < len(self.servers):
            return self.servers[int(wanted)]
        raise UserError(
            f"SERVER_ID={wanted} is not in the rank table; give a position from 0 to "
            f"{len(self.servers) - 1} or one of {', '.join(self.servers)}"
        )

    def document(self) -> dict[str, Any]:
        """The table in the 1.0 form, all numbers as strings, as HCCL reads it."""
        servers = [
            {
                "server_id": server,
                "device": [
                    {
                        "device_id": str(rank.device_id),
                        "device_ip": rank.device_ip,
                        "rank_id": str(rank.rank_id),
                    }
                    for rank in self.on_server(server)
                ],
                "host_nic_ip": "reserve",
            }
            for server in self.servers
        ]
        return {
            "version": "1.0",
            "server_count": str(len(servers)),
            "server_list": servers,
            "status": "completed",
        }

    def write(self, path: PathLike) -> Path:
        """Write the 1.0 form to ``path``, atomically."""
        write_json(path, self.document())
        return Path(path)


def is_this_host(server: str) -> bool:
    """Whether a host name or an IP address belongs to this machine."""
    if server in (socket.gethostname(), socket.getfqdn()):
        return True
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    try:
        socket.inet_pton(family, server)
        # Binding works for a machine's own addresses only, whatever its interfaces are called.
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((server, 0))
    except OSError:
        return False
    return True


def table_path(path: PathLike) -> Path:
    """The table's file: ``path`` itself, or ``jobstart_hccl.json`` in it if it is a folder.

    Raises:
        UserError: there is no such file.
    """
    found = Path(path)
    if found.is_dir():
        found = found / FILE_NAME
    if not found.is_file():
        raise UserError(
            f"rank table {found} does not exist; give the JSON file hccl_tools wrote, "
            f"or the folder that holds {FILE_NAME}"
        )
    return found


def read_rank_table(path: PathLike, wait_s: float = 600.0) -> RankTable:
    """Read and check a rank table, waiting while the platform is still filling it in.

    Args:
        path: the JSON file, or the folder holding ``jobstart_hccl.json``.
        wait_s: how long, in seconds, to wait for a table of status "initializing".

    Raises:
        UserError: one sentence naming the file and what is wrong with it.
    """
    file = table_path(path)
    deadline = time.monotonic() + wait_s
    waiting = False
    while True:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            # Whoever completes the table may be writing just now.
            if not waiting or time.monotonic() >= deadline:
                raise UserError(f"rank table {file} is not valid JSON: {error}") from error
        else:
            if not isinstance(content, dict):
                raise UserError(f"rank table {file} is not a JSON object; see hccl_tools")
            if content.get("status") != "initializing":
                return parse_rank_table(content, str(file))
            waiting = True
            if time.monotonic() >= deadline:
                raise UserError(
                    f"rank table {file} still has status 'initializing' after {wait_s:g} s; "
                    "the job's other servers have not all started"
                )
        time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))


def parse_rank_table(content: Mapping[str, Any], name: str = "rank table") -> RankTable:
    """Check the parsed JSON of a completed rank table.

    Args:
        content: the JSON object.
        name: what to call the table in messages, usually its file.

    Raises:
        UserError: one sentence naming the table, the value and what was expected.
    """
    status = content.get("status")
    if status != "completed":
        raise UserError(f"{name} has status {status!r}; only a 'completed' table can be used")
    if "group_list" in content:
        table = _from_groups(content, name)
    else:
        table = _from_servers(content, name)
    _check(table, name)
    return table


def _from_servers(content: Mapping[str, Any], name: str) -> RankTable:
    version = str(content.get("version"))
    if version not in VERSIONS:
        raise UserError(
            f"{name} has version {content.get('version')!r}; known are {', '.join(VERSIONS)} "
            "and the form with group_list"
        )
    entries = _objects(content, "server_list", name)
    _check_count(content, "server_count", len(entries), "servers", name)
    servers: list[str] = []
    ranks: list[Rank] = []
    for entry in entries:
        server = _server_id(entry, name)
        if server in servers:
            raise UserError(f"{name} lists server {server} twice; merge its devices into one entry")
        servers.append(server)
        devices = [
            (_number(device, "rank_id", name), device) for device in _devices(entry, server, name)
        ]
        devices.sort(key=lambda pair: pair[0])
        ranks += [
            Rank(
                rank, _number(device, "device_id", name), server, index, _text(device, "device_ip")
            )
            for index, (rank, device) in enumerate(devices)
        ]
    ranks.sort(key=lambda rank: rank.rank_id)
    return RankTable(tuple(ranks), tuple(servers), version)


def _from_groups(content: Mapping[str, Any], name: str) -> RankTable:
    groups = _objects(content, "group_list", name)
    _check_count(content, "group_count", len(groups), "groups", name)
    instances: list[tuple[int, str, Mapping[str, Any]]] = []
    for group in groups:
        members = _objects(group, "instance_list", name)
        _check_count(group, "instance_count", len(members), "instances", name)
        count = sum(len(_devices(member, _server_id(member, name), name)) for member in members)
        _check_count(group, "device_count", count, "devices", name)
        instances += [(*_pod(member, name), member) for member in members]
    # The instances stand in no particular order; their names end in their number.
    instances.sort(key=lambda item: item[0])
    counts: dict[str, int] = {}
    ranks: list[Rank] = []
    for _, _, member in instances:
        server = _server_id(member, name)
        for device in _devices(member, server, name):
            local = counts.get(server, 0)
            counts[server] = local + 1
            device_id = _number(device, "device_id", name)
            ranks.append(Rank(len(ranks), device_id, server, local, _text(device, "device_ip")))
    pods = tuple((pod, _server_id(member, name)) for _, pod, member in instances)
    return RankTable(tuple(ranks), tuple(counts), "0", pods)


def _check(table: RankTable, name: str) -> None:
    seen: set[int] = set()
    for rank in table.ranks:
        if rank.rank_id in seen:
            raise UserError(f"{name} uses rank_id {rank.rank_id} twice; number the ranks from 0 on")
        seen.add(rank.rank_id)
    missing = sorted(set(range(table.size)) - seen)
    if missing:
        raise UserError(
            f"{name} has {table.size} ranks but no rank_id {missing[0]}; "
            f"number them 0 to {table.size - 1} without gaps"
        )
    cards: set[tuple[str, int]] = set()
    for rank in table.ranks:
        card = (rank.server_id, rank.device_id)
        if card in cards:
            raise UserError(
                f"{name} gives device_id {rank.device_id} of server {rank.server_id} to two ranks; "
                "each rank needs a card of its own"
            )
        cards.add(card)


def _objects(holder: Mapping[str, Any], key: str, name: str) -> list[Mapping[str, Any]]:
    value = holder.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{name} has no list of objects called {key!r}; generate it anew")
    if not value:
        raise UserError(f"{name} has an empty {key!r}; there is nothing to run on")
    return value


def _devices(entry: Mapping[str, Any], server: str, name: str) -> list[Mapping[str, Any]]:
    # "device" in 1.0 and 1.2, "devices" in the old form; either is taken in both.
    key = "devices" if "devices" in entry else "device"
    value = entry.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{name} has no list of devices for server {server}; generate it anew")
    if not value:
        raise UserError(f"{name} lists no device for server {server}; remove the server or add one")
    return value


def _server_id(entry: Mapping[str, Any], name: str) -> str:
    server = _text(entry, "server_id")
    if not server:
        raise UserError(f"{name} has a server without server_id; give each a unique name")
    return server


def _pod(entry: Mapping[str, Any], name: str) -> tuple[int, str]:
    pod = _text(entry, "pod_name")
    number = pod.rpartition("-")[2]
    if not number.isdecimal():
        raise UserError(
            f"{name} has an instance with pod_name {pod!r}; it must end in '-' and a number, "
            "which gives the order of the ranks"
        )
    return int(number), pod


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key, "")
    return "" if value is None else str(value).strip()


def _number(entry: Mapping[str, Any], key: str, name: str) -> int:
    text = _text(entry, key)
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"{name} has a device with {key} {entry.get(key)!r}; expected 0, 1, 2, ...")
    return int(text)


def _check_count(holder: Mapping[str, Any], key: str, found: int, what: str, name: str) -> None:
    if key in holder and _number(holder, key, name) != found:
        raise UserError(f"{name} says {key} {holder[key]} but lists {found} {what}; correct either")


def single_server_table(device_ids: Iterable[int], server_id: str = "127.0.0.1") -> RankTable:
    """A table for some cards of this machine, for launches without a file."""
    ranks = tuple(Rank(index, device, server_id, index) for index, device in enumerate(device_ids))
    return RankTable(ranks, (server_id,), "1.0")
