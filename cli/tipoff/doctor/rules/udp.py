"""Judges the facts about the ports of game servers, and says what cannot be known from here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tipoff.doctor.facts.udp import LoopFacts, PortFacts, ProbeFacts
from tipoff.doctor.findings import Finding, Status, fail, ok, warn
from tipoff.doctor.target import is_local
from tipoff_shared.primitives import udp_socket


def judge_any_ports(public_hosts: Sequence[str]) -> Finding:
    """Game servers that take any free ports: right where no firewall stands between them and the players."""
    check, said = "ports", "game servers take any free UDP and TCP ports"
    if all(is_local(host) for host in public_hosts):
        return ok(check, f"{said}; players are on this machine only")
    return warn(
        check,
        said,
        "A firewall must let all of them through. `tipoff up --ports 30000-30199` keeps to a range that it can open, "
        "and `tipoff doctor` then checks it.",
    )


def judge_ports(facts: PortFacts) -> list[Finding]:
    """Findings about the port range on this host."""
    check, ports = "ports", facts.ports
    name = f"{ports[0]}-{ports[-1]}"
    if facts.denied:
        return [
            fail(
                check,
                f"UDP ports {name} cannot be bound: {facts.denied}",
                "Only root may bind ports below 1024; choose others with TIPOFF_PORT_RANGE.",
            )
        ]
    findings: list[Finding] = []
    free = len(ports) - len(facts.busy)
    said = f"UDP ports {name}: {free} of {len(ports)} free, {len(facts.busy)} in use"
    if not free:
        findings.append(
            fail(
                check,
                said,
                "No game server can start. Add ports with TIPOFF_PORT_RANGE, or find out who uses them: `ss -ulpn`.",
            )
        )
    elif free < len(ports) / 5:
        findings.append(warn(check, said, "Soon no game server can start: add ports with TIPOFF_PORT_RANGE."))
    else:
        findings.append(ok(check, f"{said} (mostly by running game servers)" if facts.busy else said))
    shared = range(max(ports.start, facts.ephemeral.start), min(ports.stop, facts.ephemeral.stop))
    if len(shared):
        findings.append(
            warn(
                check,
                f"the kernel gives ports {shared[0]}-{shared[-1]} to any program, too (ip_local_port_range)",
                f"Choose a range below it, or reserve it: `sysctl net.ipv4.ip_local_reserved_ports={name}`.",
            )
        )
    return findings


def judge_buffer(size: int) -> Finding:
    """Whether a UDP socket's receive buffer of `size` bytes holds a burst of packets."""
    check = "udp-buffer"
    if not udp_socket.shortage(size):
        return ok(check, f"a UDP socket gets a receive buffer of {size >> 10} KiB")
    return warn(
        check,
        f"a UDP socket gets a receive buffer of {size >> 10} KiB, not {udp_socket.RECEIVE_BYTES >> 10} KiB: players' "
        "packets get lost in bursts",
        udp_socket.remedy(),
    )


def judge_loop(facts: LoopFacts) -> Finding:
    """What a datagram to our own public address shows."""
    check = "udp"
    outside = (
        f"Find out from another machine: here `tipoff doctor --listen {facts.port or 'PORTS'}`, "
        f"there `tipoff doctor --probe {facts.host} --ports {facts.port or 'PORTS'}`."
    )
    if facts.arrived is None:
        return warn(check, f"sending to {facts.host} failed: {facts.error}", outside)
    if facts.arrived and is_local(facts.host):
        return ok(
            check, f"a datagram to {facts.host}:{facts.port} arrives; players can be only on this machine"
        )
    if facts.arrived:
        return Finding(
            check,
            Status.OK,
            f"a datagram from here to {facts.host}:{facts.port} arrives; whether one from the internet "
            "does depends on firewalls in front of this host, which cannot be seen from here",
            outside,
        )
    return warn(
        check,
        f"a datagram from here to {facts.host}:{facts.port} does not come back to this host. Routers and clouds that "
        "translate addresses often do not translate this path; or the port is closed, or it is another host's address",
        outside,
    )


def judge_probe(facts: ProbeFacts) -> Finding:
    """What the answers of an echo on another machine show."""
    check, ports = "udp", facts.ports
    missing = [port for port in ports if port not in facts.answered]
    where = f"{facts.host}, UDP {ports[0]}-{ports[-1]}" if len(ports) > 1 else f"{facts.host}, UDP {ports[0]}"
    if facts.error and not facts.answered:
        return fail(check, f"{where}: {facts.error}", "Check the name and this machine's network.")
    if not missing:
        return ok(check, f"{where}: every port answers: players can connect")
    if not facts.answered:
        return fail(
            check,
            f"{where}: no answer from any port",
            f"Is `tipoff doctor --listen {ports[0]}-{ports[-1]}` running there? Then a firewall (of the host, of the "
            "provider) drops UDP: open these ports. Some networks block outgoing UDP: try from another one, too.",
        )
    return warn(
        check,
        f"{where}: {len(facts.answered)} answer, {len(missing)} do not: {spans(missing)}",
        "Ports with a running game server do not answer the probe. Open the others in the firewall.",
    )


def spans(ports: Iterable[int], most: int = 8) -> str:
    """Ports as text, like `30000-30009, 30012`; at most `most` spans."""
    parts: list[tuple[int, int]] = []
    for port in sorted(ports):
        if parts and port == parts[-1][1] + 1:
            parts[-1] = (parts[-1][0], port)
        else:
            parts.append((port, port))
    text = [str(first) if first == last else f"{first}-{last}" for first, last in parts]
    return ", ".join(text if len(text) <= most else [*text[:most], f"and {len(text) - most} more"])
