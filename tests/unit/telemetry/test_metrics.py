"""Metric names are interface."""

import grpc
from prometheus_client.parser import text_string_to_metric_families
from remuda_core.telemetry.metrics import Metrics, code_label

HISTOGRAM = "histogram"


def test_the_documented_names_exist() -> None:
    names = {family.name for family in text_string_to_metric_families(Metrics().render().decode())}
    assert {
        "grpc_server_started",
        "grpc_server_handled",
        "grpc_server_handling_seconds",
        "remuda_leader",
        "remuda_host_state",
        "remuda_host_memory_bytes",
        "remuda_instances",
        "remuda_operations",
        "remuda_operation_oldest_seconds",
        "remuda_schedule_seconds",
        "remuda_schedule_rejections",
        "remuda_migrations",
        "remuda_migration_duration_seconds",
        "remuda_migration_downtime_seconds",
        "remuda_migration_total_bytes",
        "remuda_migration_processed_bytes",
        "remuda_migration_remaining_bytes",
        "remuda_migration_dirty_bytes_per_second",
        "remuda_migration_iteration",
        "remuda_image_store_bytes",
    } <= names


def test_every_metric_is_ours_or_grpcs_and_explains_itself() -> None:
    for family in text_string_to_metric_families(Metrics().render().decode()):
        assert family.name.startswith(("remuda_", "grpc_server_")), family.name
        assert family.documentation.endswith("."), family.name


def test_a_call_is_counted_by_service_method_and_code() -> None:
    metrics = Metrics()
    metrics.rpc_handled(method="/a.B/C", kind="unary", code="OK", seconds=0.02)
    labels = {"grpc_type": "unary", "grpc_service": "a.B", "grpc_method": "C"}
    assert metrics.value("grpc_server_handled_total", {**labels, "grpc_code": "OK"}) == 1
    assert metrics.value("grpc_server_handling_seconds_bucket", {**labels, "le": "0.025"}) == 1
    assert metrics.value("grpc_server_handling_seconds_bucket", {**labels, "le": "0.01"}) == 0


def test_codes_are_spelled_as_dashboards_of_go_services_have_them() -> None:
    labels = {code.name: code_label(code.name) for code in grpc.StatusCode}
    assert labels["OK"] == "OK"
    assert labels["CANCELLED"] == "Canceled"
    assert labels["DEADLINE_EXCEEDED"] == "DeadlineExceeded"
    assert labels["UNAUTHENTICATED"] == "Unauthenticated"
    metrics = Metrics()
    metrics.rpc_started(method="/a.B/C", kind="unary")
    metrics.rpc_handled(method="/a.B/C", kind="unary", code="NOT_FOUND", seconds=0.02)
    call = {"grpc_type": "unary", "grpc_service": "a.B", "grpc_method": "C"}
    assert metrics.value("grpc_server_started_total", call) == 1
    assert metrics.value("grpc_server_handled_total", {**call, "grpc_code": "NotFound"}) == 1


def test_two_services_in_one_process_do_not_mix() -> None:
    first, second = Metrics(), Metrics()
    first.leader.set(1)
    assert (first.value("remuda_leader"), second.value("remuda_leader")) == (1, 0)
