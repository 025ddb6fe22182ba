"""What becomes of deployments and sessions, without a clock, a server or a socket."""

from __future__ import annotations

from typing import Any

import pytest

from tipoff_edgegap_emulator.deployment import (
    Deployment,
    Phase,
    Port,
    SendWebhook,
    StartServer,
    StopServer,
)
from tipoff_edgegap_emulator.errors import Refused, RefusedDeployment
from tipoff_edgegap_emulator.fault_plan import Fail, FaultPlan, NeverReady, Repeat
from tipoff_edgegap_emulator.requests import SlidingWindow
from tipoff_edgegap_emulator.sessions import Sessions, SessionStatus
from tipoff_edgegap_emulator.state import EmulatorState, Rules

KEY = ("app", "v1")
PORTS = {"udp": Port("udp", 7000, 7000, "UDP")}


def state(rules: Rules | None = None, **version: Any) -> EmulatorState:
    made = EmulatorState(rules or Rules(start_delay=10.0))
    made.catalogue.add_application({"name": "app", "is_active": True, "image": ""}, 0.0)
    body = {
        "name": "v1",
        "docker_repository": "r",
        "docker_image": "i",
        "docker_tag": "1",
        "req_cpu": 256,
        "req_memory": 512,
        "restart_policy": "never",
    }
    made.catalogue.add_version("app", body | version, 0.0)
    return made


def running(it: EmulatorState, now: float = 100.0) -> Deployment:
    one, _ = it.deploy(KEY, now=now, webhooks={"ready": "http://hook/r", "terminated": "http://hook/t"})
    it.due(one.start_at)
    it.started(one, PORTS, "192.0.2.1", one.start_at)
    return one


def test_a_deployment_starts_its_server_when_its_time_has_come() -> None:
    """Not a moment earlier, and once."""
    it = state()
    one, effects = it.deploy(KEY, now=100.0)
    assert effects == []
    assert it.next_due() == 110.0
    assert it.due(109.9) == []
    assert it.due(110.0) == [StartServer(one.request_id)]
    assert it.due(111.0) == []


def test_a_deployment_passes_its_steps() -> None:
    """As a status shows them while one waits."""
    one, _ = state().deploy(KEY, now=100.0)
    seen = [one.phase_at(at) for at in (100.0, 103.0, 106.0)]
    assert seen == [Phase.INITIALIZING, Phase.SEEKING, Phase.DEPLOYING]


def test_a_deployment_is_ready_some_time_after_its_server_runs() -> None:
    """The real service takes its time; the webhook and the status come then."""
    it = state(Rules(start_delay=10.0, ready_delay=5.0))
    one, _ = it.deploy(KEY, now=100.0, webhooks={"ready": "http://hook/r"})
    it.due(110.0)
    assert it.started(one, PORTS, "192.0.2.1", 111.0) == []
    assert (it.next_due(), one.phase_at(115.9)) == (116.0, Phase.DEPLOYING)
    assert it.due(115.9) == []
    assert it.due(116.0) == [SendWebhook("http://hook/r", one.request_id, "ready")]
    assert one.phase is Phase.READY


def test_a_server_that_ends_before_it_is_ready_is_restarted() -> None:
    """By the version's policy, and then its time begins anew."""
    it = state(Rules(start_delay=10.0, ready_delay=5.0, restart_delay=2.0), restart_policy="always")
    one, _ = it.deploy(KEY, now=100.0)
    it.due(110.0)
    it.started(one, PORTS, "192.0.2.1", 110.0)
    it.server_ended(one, 1, 112.0)
    assert it.due(113.9) == []
    assert it.due(114.0) == [StartServer(one.request_id)]
    it.started(one, PORTS, "192.0.2.1", 114.0)
    it.due(118.9)
    assert one.phase is Phase.INITIALIZING
    it.due(119.0)
    assert one.phase is Phase.READY


def test_a_stop_before_it_is_ready_stops_its_server() -> None:
    it = state(Rules(start_delay=10.0, ready_delay=5.0))
    one, _ = it.deploy(KEY, now=100.0)
    it.due(110.0)
    it.started(one, PORTS, "192.0.2.1", 110.0)
    assert it.stop(one, 111.0) == (202, [])
    assert it.due(115.0) == [StopServer(one.request_id)]
    assert one.phase is Phase.TERMINATED


def test_a_ready_deployment_is_told_once() -> None:
    """Also when its server has been started again."""
    it = state(restart_policy="always")
    one, _ = it.deploy(KEY, now=100.0, webhooks={"ready": "http://hook/r"})
    it.due(110.0)
    assert it.started(one, PORTS, "192.0.2.1", 110.0) == [
        SendWebhook("http://hook/r", one.request_id, "ready")
    ]
    it.server_ended(one, 1, 120.0)
    assert it.due(121.0) == [StartServer(one.request_id)]
    assert it.started(one, PORTS, "192.0.2.1", 121.0) == []
    assert one.restarts == 1


def test_a_server_that_ends_ends_its_deployment_unless_it_is_to_be_restarted() -> None:
    """restart_policy never."""
    it = state()
    one = running(it)
    assert it.server_ended(one, 1, 120.0)[-1] == SendWebhook("http://hook/t", one.request_id, "terminated")
    assert one.phase is Phase.TERMINATED


@pytest.mark.parametrize(("code", "ends"), [(0, True), (1, False)])
def test_restart_on_failure_looks_at_the_exit_code(code: int, ends: bool) -> None:
    it = state(restart_policy="on_failure")
    one = running(it)
    it.server_ended(one, code, 120.0)
    assert (one.phase is Phase.TERMINATED) is ends


def test_stopping_what_runs_stops_it_at_once() -> None:
    it = state()
    one = running(it)
    status, effects = it.stop(one, 120.0)
    assert status == 200
    assert effects[0] == StopServer(one.request_id)


def test_stopping_what_is_on_its_way_waits_until_it_would_be_there() -> None:
    """202, and no server is ever started."""
    it = state()
    one, _ = it.deploy(KEY, now=100.0)
    assert it.stop(one, 101.0) == (202, [])
    assert one.phase is Phase.INITIALIZING
    assert it.due(110.0) == []
    assert one.phase is Phase.TERMINATED


def test_stopping_twice_is_gone() -> None:
    it = state()
    one = running(it)
    it.stop(one, 120.0)
    with pytest.raises(Refused) as refused:
        it.stop(one, 121.0)
    assert refused.value.status == 410


def test_what_is_stopped_is_known_for_a_while_and_not_listed() -> None:
    it = state(Rules(start_delay=0.0, forget_after=60.0))
    one = running(it)
    it.stop(one, 120.0)
    assert it.active() == []
    assert it.find(one.request_id) is one
    it.due(181.0)
    assert it.find(one.request_id) is None


def test_without_room_a_deployment_in_error_stays_behind() -> None:
    """The answer 422 has a request id."""
    it = state(Rules(start_delay=0.0, capacity=1))
    running(it)
    with pytest.raises(RefusedDeployment) as refused:
        it.deploy(KEY, now=130.0)
    assert refused.value.status == 422
    left = it.find(refused.value.body["request_id"])
    assert left is not None
    assert left.phase is Phase.ERROR
    assert left in it.active()


def test_an_inactive_version_is_not_deployed() -> None:
    it = state(is_active=False)
    with pytest.raises(Refused) as refused:
        it.deploy(KEY, now=1.0)
    assert refused.value.status == 400


def test_a_deployment_ends_when_its_time_is_over() -> None:
    """max_duration, in minutes."""
    it = state(max_duration=60)
    one = running(it)
    assert it.due(one.ready_at + 3599) == []
    assert StopServer(one.request_id) in it.due(one.ready_at + 3600)


# Sessions.


def with_sessions(kind: str = "Seat", sockets: int = 4, **config: Any) -> tuple[EmulatorState, Sessions]:
    it = state(Rules(start_delay=0.0), session_config={"kind": kind, "sockets": sockets, **config})
    return it, Sessions(it)


def session(sessions: Sessions, players: int = 1, now: float = 100.0, **members: Any) -> Any:
    body = {"app_name": "app", "ip_list": ["203.0.113.7"] * players, "webhook_url": "http://hook/s"} | members
    return sessions.create(body, now)[0]


def make_ready(it: EmulatorState, sessions: Sessions, now: float = 101.0) -> list[Any]:
    for one in it.living():
        if one.phase is Phase.INITIALIZING:
            it.due(now)
            it.started(one, PORTS, "192.0.2.1", now)
    return sessions.due(now)


def test_a_seat_session_makes_a_deployment_and_is_ready_with_it() -> None:
    it, sessions = with_sessions()
    made = session(sessions)
    assert made.deployment_id is not None
    sessions.due(100.0)
    assert made.status is SessionStatus.LINKED
    assert SendWebhook("http://hook/s", made.session_id, "session") in make_ready(it, sessions)
    assert made.status is SessionStatus.READY


def test_seats_share_a_deployment_until_its_sockets_are_taken() -> None:
    it, sessions = with_sessions(sockets=4)
    first = session(sessions, players=3)
    assert session(sessions).deployment_id == first.deployment_id
    assert session(sessions).deployment_id != first.deployment_id
    assert [sessions.used(one) for one in it.living()] == [4, 1]


def test_a_match_takes_one_socket_however_many_play() -> None:
    it, sessions = with_sessions("Match", sockets=1)
    first = session(sessions, players=6)
    assert sessions.used(it.living()[0]) == 1
    assert session(sessions).deployment_id != first.deployment_id


def test_a_deleted_session_frees_its_sockets_and_leaves_the_deployment() -> None:
    it, sessions = with_sessions(sockets=1)
    first = session(sessions)
    sessions.delete(first.session_id, 101.0)
    assert session(sessions).deployment_id == first.deployment_id
    assert len(it.living()) == 1
    with pytest.raises(Refused) as refused:
        sessions.delete(first.session_id, 102.0)
    assert refused.value.status == 404


def test_a_session_is_in_error_when_its_deployment_is_gone() -> None:
    it, sessions = with_sessions()
    made = session(sessions)
    make_ready(it, sessions)
    it.stop(it.living()[0], 110.0)
    sessions.due(110.0)
    assert made.status is SessionStatus.ERROR


def test_without_autodeploy_a_session_finds_no_place() -> None:
    _, sessions = with_sessions(autodeploy=False)
    assert session(sessions).status is SessionStatus.UNPROCESSABLE


def test_a_session_asks_for_a_deployment_by_its_id() -> None:
    it, sessions = with_sessions(sockets=1)
    one, _ = it.deploy(KEY, now=99.0)
    other, _ = it.deploy(KEY, now=99.5)
    assert session(sessions, deployment_request_id=one.request_id).deployment_id == one.request_id
    with pytest.raises(Refused) as refused:
        session(sessions, deployment_request_id=one.request_id)
    assert refused.value.status == 409
    assert session(sessions).deployment_id == other.request_id


def test_an_empty_deployment_ends_after_its_ttl() -> None:
    """empty_ttl, in minutes."""
    it, sessions = with_sessions(empty_ttl=10)
    made = session(sessions)
    make_ready(it, sessions)
    sessions.delete(made.session_id, 200.0)
    one = it.living()[0]
    assert sessions.next_due() == 800.0
    sessions.due(799.0)
    assert one.phase is Phase.READY
    sessions.due(800.0)
    assert one.phase is Phase.TERMINATED


# Limits and orders.


def test_never_more_than_the_rate_within_any_second() -> None:
    """Also across the second's edge, where buckets and calendar seconds let more through."""
    window = SlidingWindow(10)
    assert [window.accept(0.9) for _ in range(11)] == [True] * 10 + [False]
    assert not window.accept(1.8)
    assert window.accept(1.95)


def test_an_order_is_carried_out_as_often_as_it_says() -> None:
    plan = FaultPlan()
    order = plan.add("status", Fail(503), 2)
    assert [plan.take("list"), plan.take("status"), plan.take("status"), plan.take("status")] == [
        None,
        Fail(503),
        Fail(503),
        None,
    ]
    assert order.taken == 2


def test_a_cancelled_order_is_over() -> None:
    plan = FaultPlan()
    plan.add("status", Fail(500)).cancel()
    assert plan.take("status") is None


@pytest.mark.parametrize(
    ("operation", "how"),
    [("nonsense", Fail(500)), ("life", Fail(500)), ("status", NeverReady()), ("deploy", Repeat(2))],
)
def test_an_order_that_makes_no_sense_is_refused(operation: str, how: Any) -> None:
    with pytest.raises(ValueError):
        FaultPlan().add(operation, how)
