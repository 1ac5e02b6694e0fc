"""Statistics of several workers, held against tritonclient's own messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from tessera_gateway.fleet.counts import STATISTICS, merge_json, merge_messages
from tessera_gateway.fleet.wire import Malformed

NUMBERS = st.integers(0, 2**40)
DURATION = st.fixed_dictionaries({"count": NUMBERS, "ns": NUMBERS})
INFER = st.fixed_dictionaries({"success": DURATION, "fail": DURATION, "cache_miss": DURATION})
BATCH = st.fixed_dictionaries({"batch_size": st.integers(1, 3), "compute_infer": DURATION})
MODEL = st.fixed_dictionaries(
    {
        "last_inference": NUMBERS,
        "inference_count": NUMBERS,
        "execution_count": NUMBERS,
        "inference_stats": INFER,
        "batch_stats": st.lists(BATCH, max_size=3, unique_by=lambda each: each["batch_size"]),
        "response_stats": st.dictionaries(
            st.sampled_from("01"), st.fixed_dictionaries({"success": DURATION})
        ),
    }
)
SERVERS = st.lists(
    st.dictionaries(st.sampled_from(("generate", "edit")), MODEL), min_size=1, max_size=3
)


def statistics(server: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_stats": [{"name": name, "version": "1", **model} for name, model in server.items()]
    }


def sent(server: dict[str, Any]) -> bytes:
    """As Triton sends it."""
    message = ParseDict(statistics(server), service_pb2.ModelStatisticsResponse())
    return bytes(message.SerializeToString())


def summed(servers: list[dict[str, Any]], name: str, *path: str) -> int:
    total = 0
    for server in servers:
        value: Any = server.get(name)
        for key in path:
            value = value[key] if value else 0
        total += value or 0
    return total


@given(SERVERS)
def test_counts_and_times_are_sums(servers: list[dict[str, Any]]) -> None:
    merged = service_pb2.ModelStatisticsResponse.FromString(
        merge_messages(list(map(sent, servers)))
    )
    assert {m.name for m in merged.model_stats} == {n for server in servers for n in server}
    for model in merged.model_stats:
        assert model.version == "1"
        assert model.inference_count == summed(servers, model.name, "inference_count")
        success = model.inference_stats.success
        assert success.count == summed(servers, model.name, "inference_stats", "success", "count")
        assert success.ns == summed(servers, model.name, "inference_stats", "success", "ns")
        mine = [server[model.name] for server in servers if model.name in server]
        assert model.last_inference == max(each["last_inference"] for each in mine)
        batches = [batch for each in mine for batch in each["batch_stats"]]
        assert sorted(b.batch_size for b in model.batch_stats) == sorted(
            {b["batch_size"] for b in batches}
        )
        assert sum(b.compute_infer.count for b in model.batch_stats) == sum(
            b["compute_infer"]["count"] for b in batches
        )
        answered = [r["success"]["count"] for m in mine for r in m["response_stats"].values()]
        assert sum(r.success.count for r in model.response_stats.values()) == sum(answered)


@given(SERVERS)
def test_both_protocols_say_the_same(servers: list[dict[str, Any]]) -> None:
    over_grpc = service_pb2.ModelStatisticsResponse()
    over_grpc.ParseFromString(merge_messages(list(map(sent, servers))))
    merged = merge_json([json.dumps(statistics(server)).encode() for server in servers])
    over_http = ParseDict(json.loads(merged), service_pb2.ModelStatisticsResponse())
    assert MessageToDict(over_http) == MessageToDict(over_grpc)


@given(st.dictionaries(st.sampled_from(("generate", "edit")), MODEL))
def test_one_workers_statistics_stay_as_they_are(server: dict[str, Any]) -> None:
    same = service_pb2.ModelStatisticsResponse.FromString(merge_messages([sent(server)]))
    assert same == service_pb2.ModelStatisticsResponse.FromString(sent(server))


def test_what_is_none() -> None:
    with pytest.raises(Malformed):
        merge_messages([b"\x0a\xff"])
    with pytest.raises(ValueError, match="Expecting"):
        merge_json([b"{"])


@pytest.mark.parametrize("message", ["ModelStatistics", "InferStatistics", "InferBatchStatistics"])
def test_every_field_is_known(message: str) -> None:
    """Of Triton's messages, as tritonclient has them."""
    found: dict[str, Any] = {}

    def walk(schema: Any, descriptor: Any) -> None:
        found[descriptor.name] = True
        names = {f.number: f.name for f in descriptor.fields}
        assert {number: name for number, (name, _) in schema.items()} == names
        for field in descriptor.fields:
            kind = schema[field.number][1]
            if field.message_type:
                walk(kind[0] if isinstance(kind, list) else kind, field.message_type)

    walk(STATISTICS, service_pb2.ModelStatisticsResponse.DESCRIPTOR)
    assert message in found
