"""HCCL rank tables: the documented forms, every refusal, and round trips of random tables."""

import json
import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_utils.errors import UserError
from model_utils.rank_table import (
    is_this_host,
    parse_rank_table,
    read_rank_table,
    single_server_table,
)


def v1(servers, as_text=str, **overrides):
    """A 1.0 table of {server: [(device, rank), ...]}."""
    table = {
        "version": "1.0",
        "server_count": as_text(len(servers)),
        "server_list": [
            {
                "server_id": server,
                "device": [
                    {
                        "device_id": as_text(device),
                        "device_ip": f"192.1.{rank}.6",
                        "rank_id": as_text(rank),
                    }
                    for device, rank in devices
                ],
                "host_nic_ip": "reserve",
            }
            for server, devices in servers.items()
        ],
        "status": "completed",
    }
    return table | overrides


def v0(pods, as_text=str):
    """The old form of [(pod, server, [device, ...]), ...]."""
    return {
        "status": "completed",
        "group_count": "1",
        "group_list": [
            {
                "group_name": "job-x",
                "device_count": as_text(sum(len(devices) for _, _, devices in pods)),
                "instance_count": as_text(len(pods)),
                "instance_list": [
                    {
                        "pod_name": pod,
                        "server_id": server,
                        "devices": [
                            {"device_id": as_text(device), "device_ip": "192.1.65.251"}
                            for device in devices
                        ],
                    }
                    for pod, server, devices in pods
                ],
            }
        ],
    }


def places(table):
    return [
        (rank.rank_id, rank.server_id, rank.device_id, rank.local_index) for rank in table.ranks
    ]


def test_documented_eight_card_table():
    table = parse_rank_table(v1({"10.155.111.140": [(i, i) for i in range(8)]}))
    assert table.size == 8 and table.servers == ("10.155.111.140",) and table.version == "1.0"
    assert places(table) == [(i, "10.155.111.140", i, i) for i in range(8)]
    assert table.ranks[3].device_ip == "192.1.3.6"


def test_two_servers_with_interleaved_ranks_and_cards_not_from_zero():
    table = parse_rank_table(v1({"b": [(6, 3), (4, 1)], "a": [(1, 2), (0, 0)]}, as_text=int))
    assert places(table) == [(0, "a", 0, 0), (1, "b", 4, 0), (2, "a", 1, 1), (3, "b", 6, 1)]
    assert [rank.rank_id for rank in table.on_server("b")] == [1, 3]
    assert table.servers == ("b", "a"), "SERVER_ID counts in the table's order"


def test_version_1_2_of_super_pods_is_read():
    content = v1({"a": [(0, 0)], "b": [(0, 1)]}, version="1.2")
    for server in content["server_list"]:
        server["host_ip"] = "10.0.0.1"
        server["device"][0]["super_device_id"] = "4"
    content["super_pod_list"] = [{"super_pod_id": "0", "server_list": [{"server_id": "a"}]}]
    assert parse_rank_table(content).version == "1.2"


def test_old_form_orders_instances_by_the_number_in_their_name():
    # Ten instances: "job-10" sorts before "job-2" as text.
    pods = [(f"job-x-{i}", f"10.0.0.{i}", [0, 1]) for i in range(11)]
    shuffled = pods[:]
    random.Random(1).shuffle(shuffled)
    table = parse_rank_table(v0(shuffled))
    expected = [(2 * i + d, f"10.0.0.{i}", d, d) for i in range(11) for d in range(2)]
    assert places(table) == expected


def test_old_form_converts_to_one_that_says_the_same(tmp_path):
    table = parse_rank_table(v0([("j-1", "b", [0, 1]), ("j-0", "a", [2, 3])]))
    converted = json.loads(table.write(tmp_path / "new.json").read_text())
    assert converted["version"] == "1.0" and converted["server_count"] == "2"
    assert [server["server_id"] for server in converted["server_list"]] == ["a", "b"]
    assert converted["server_list"][1]["device"] == [
        {"device_id": "0", "device_ip": "192.1.65.251", "rank_id": "2"},
        {"device_id": "1", "device_ip": "192.1.65.251", "rank_id": "3"},
    ]
    assert places(read_rank_table(tmp_path / "new.json")) == places(table)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_table_survives_writing_shuffling_and_reading(data):
    counts = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    text = data.draw(st.sampled_from([str, int]))
    rng = data.draw(st.randoms(use_true_random=False))
    ranks = list(range(sum(counts)))
    rng.shuffle(ranks)
    servers, expected = {}, {}
    for index, count in enumerate(counts):
        devices = rng.sample(range(16), count)
        mine = [ranks.pop() for _ in range(count)]
        servers[f"10.0.0.{index}"] = list(zip(devices, mine, strict=True))
        expected |= {r: (f"10.0.0.{index}", d) for d, r in zip(devices, mine, strict=True)}
    table = parse_rank_table(v1(servers, text))
    assert {r.rank_id: (r.server_id, r.device_id) for r in table.ranks} == expected
    for server in table.servers:
        assert [rank.local_index for rank in table.on_server(server)] == list(
            range(len(servers[server]))
        )
    assert parse_rank_table(table.document()) == table


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (v1({"a": [(0, 0), (1, 0)]}), ["rank_id 0 twice"]),
        (v1({"a": [(0, 0), (1, 2)]}), ["no rank_id 1", "0 to 1"]),
        (v1({"a": [(0, 1), (1, 2)]}), ["no rank_id 0"]),
        (v1({"a": [(3, 0), (3, 1)]}), ["device_id 3 of server a", "two ranks"]),
        (v1({"a": [(0, 0)]}, server_count="2"), ["server_count 2", "lists 1 servers"]),
        (v1({"a": [(0, 0)]}, version="2.0"), ["version '2.0'", "1.0, 1.2"]),
        ({"status": "completed", "server_list": []}, ["version None"]),
        (v1({"a": [(0, 0)]}, status="aborted"), ["status 'aborted'", "completed"]),
        (v1({}), ["empty 'server_list'"]),
        (v1({"a": []}), ["no device for server a"]),
        (v1({"a": [(-1, 0)]}), ["device_id '-1'"]),
        (v1({"a": [("x", 0)]}), ["device_id 'x'"]),
        (v1({"": [(0, 0)]}), ["without server_id"]),
        (v0([("job", "a", [0])]), ["pod_name 'job'", "number"]),
        (v1({"a": [(0, 0)]}, server_list="a"), ["'server_list'"]),
    ],
)
def test_a_wrong_table_is_refused_in_one_sentence(content, words, tmp_path):
    file = tmp_path / "hccl_8p.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_rank_table(file)
    message = str(caught.value)
    assert "\n" not in message and str(file) in message
    for word in words:
        assert word in message


def test_counts_of_the_old_form_are_checked():
    for key in ("device_count", "instance_count"):
        content = v0([("j-0", "a", [0, 1])])
        content["group_list"][0][key] = "9"
        with pytest.raises(UserError, match=f"{key} 9"):
            parse_rank_table(content)


def test_same_server_twice_is_refused():
    content = v1({"a": [(0, 0)], "b": [(1, 1)]})
    content["server_list"][1]["server_id"] = "a"
    with pytest.raises(UserError, match="server a twice"):
        parse_rank_table(content)


def test_missing_file_broken_json_and_folder_without_table(tmp_path):
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        read_rank_table(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"jobstart_hccl\.json does not exist"):
        read_rank_table(tmp_path)
    (tmp_path / "half.json").write_text('{"status": "comp')
    with pytest.raises(UserError, match=r"half\.json is not valid JSON"):
        read_rank_table(tmp_path / "half.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="not a JSON object"):
        read_rank_table(tmp_path / "list.json")


def test_initializing_is_waited_for_through_a_half_written_file(tmp_path):
    """The platform writes "initializing", then the table, and not atomically."""
    file = tmp_path / "jobstart_hccl.json"
    file.write_text('{"status": "initializing"}')
    complete = json.dumps(v0([("j-0", "a", [0, 1])]))

    def finish():
        time.sleep(0.7)
        file.write_text(complete[: len(complete) // 2])
        time.sleep(0.7)
        file.write_text(complete)

    writer = threading.Thread(target=finish)
    writer.start()
    table = read_rank_table(tmp_path, wait_s=20)
    writer.join()
    assert table.size == 2


def test_initializing_is_given_up_after_the_limit(tmp_path):
    file = tmp_path / "t.json"
    file.write_text('{"status": "initializing"}')
    start = time.monotonic()
    with pytest.raises(UserError, match="'initializing' after 1 s"):
        read_rank_table(file, wait_s=1)
    assert 0.9 < time.monotonic() - start < 5


TWO = parse_rank_table(v1({"198.51.100.7": [(0, 0)], "127.0.0.1": [(0, 1)]}))


@pytest.fixture(autouse=True)
def _no_platform(monkeypatch):
    for name in ("SERVER_ID", "MA_CURRENT_HOST_IP", "MA_CURRENT_INSTANCE_NAME"):
        monkeypatch.delenv(name, raising=False)


def test_this_server_by_position_name_and_own_address(monkeypatch):
    assert TWO.this_server() == "127.0.0.1", "the other address (TEST-NET-2) is not this host"
    assert TWO.this_server(0) == "198.51.100.7"
    assert TWO.this_server("198.51.100.7") == "198.51.100.7"
    monkeypatch.setenv("SERVER_ID", "0")
    assert TWO.this_server() == "198.51.100.7"
    assert TWO.this_server("1") == "127.0.0.1"


def test_this_server_by_modelarts_address_and_instance(monkeypatch):
    monkeypatch.setenv("MA_CURRENT_HOST_IP", "198.51.100.7")
    assert TWO.this_server() == "198.51.100.7"
    old = parse_rank_table(v0([("j-1", "10.0.0.1", [0]), ("j-0", "10.0.0.0", [0])]))
    monkeypatch.setenv("MA_CURRENT_INSTANCE_NAME", "j-1")
    assert old.this_server() == "10.0.0.1"


@pytest.mark.parametrize("wanted", ["2", "10.9.9.9", "-1"])
def test_a_server_not_in_the_table_is_refused(wanted):
    with pytest.raises(UserError, match=f"SERVER_ID={wanted} is not in the rank table"):
        TWO.this_server(wanted)


def test_foreign_and_ambiguous_hosts_are_refused():
    foreign = parse_rank_table(v1({"198.51.100.7": [(0, 0)], "198.51.100.8": [(0, 1)]}))
    with pytest.raises(UserError, match="none of them is this host; set SERVER_ID"):
        foreign.this_server()
    both = parse_rank_table(v1({"127.0.0.1": [(0, 0)], "127.0.0.2": [(0, 1)]}))
    with pytest.raises(UserError, match=r"127\.0\.0\.1, 127\.0\.0\.2 are all this host"):
        both.this_server()


def test_the_only_server_needs_no_address():
    assert parse_rank_table(v1({"198.51.100.7": [(0, 0)]})).this_server() == "198.51.100.7"


def test_is_this_host():
    assert is_this_host("127.0.0.1")
    assert not is_this_host("198.51.100.7")
    assert not is_this_host("not-a-host")


def test_single_server_table():
    assert places(single_server_table([3, 5])) == [
        (0, "127.0.0.1", 3, 0),
        (1, "127.0.0.1", 5, 1),
    ]
