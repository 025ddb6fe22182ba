"""What is known of the game servers' ports, and what cannot be: pure judgement."""

from __future__ import annotations

from collections.abc import Iterable

from tipoff.doctor.facts.udp import LoopFacts, PortFacts, ProbeFacts
from tipoff.doctor.findings import Finding, Status, fail, ok, warn
from tipoff.doctor.target import is_local


def judge_ports(facts: PortFacts) -> list[Finding]:
    check, ports = "ports", facts.ports
    name = f"{ports[0]}-{ports[-1]}"
    if facts.denied:
        return [
            fail(
                check,
                f"UDP ports {name} cannot be bound: {facts.denied}",
                "Ports below 1024 belong to root; choose others by TIPOFF_PORT_RANGE.",
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
                "No game server can start. Name more ports by TIPOFF_PORT_RANGE, or find out who has them: `ss -ulpn`.",
            )
        )
    elif free < len(ports) / 5:
        findings.append(
            warn(check, said, "Soon no game server can start: name more ports by TIPOFF_PORT_RANGE.")
        )
    else:
        findings.append(ok(check, f"{said} (game servers that run, mostly)" if facts.busy else said))
    shared = range(max(ports.start, facts.ephemeral.start), min(ports.stop, facts.ephemeral.stop))
    if len(shared):
        findings.append(
            warn(
                check,
                f"ports {shared[0]}-{shared[-1]} are also what the kernel gives to any program (ip_local_port_range)",
                f"Choose a range below it, or reserve it: `sysctl net.ipv4.ip_local_reserved_ports={name}`.",
            )
        )
    return findings


def judge_loop(facts: LoopFacts) -> Finding:
    check = "udp"
    outside = (
        f"From another machine it can be known: here `tipoff doctor --listen {facts.port or 'PORTS'}`, "
        f"there `tipoff doctor --probe {facts.host} --ports {facts.port or 'PORTS'}`."
    )
    if facts.arrived is None:
        return warn(check, f"nothing could be sent to {facts.host}: {facts.error}", outside)
    if facts.arrived and is_local(facts.host):
        return ok(
            check, f"a datagram to {facts.host}:{facts.port} arrives: players are on this machine alone"
        )
    if facts.arrived:
        return Finding(
            check,
            Status.OK,
            f"a datagram from here to {facts.host}:{facts.port} arrives; whether one from the internet does, a "
            "firewall in front of this host decides, which cannot be seen from here",
            outside,
        )
    return warn(
        check,
        f"a datagram from here to {facts.host}:{facts.port} does not come back to this host. A router or cloud that "
        "translates addresses often leaves out just this way; or the port is closed, or the address is not this host's",
        outside,
    )


def judge_probe(facts: ProbeFacts) -> Finding:
    check, ports = "udp", facts.ports
    missing = [port for port in ports if port not in facts.answered]
    where = f"{facts.host}, UDP {ports[0]}-{ports[-1]}" if len(ports) > 1 else f"{facts.host}, UDP {ports[0]}"
    if facts.error and not facts.answered:
        return fail(check, f"{where}: {facts.error}", "Look at the name, and at this machine's own network.")
    if not missing:
        return ok(check, f"{where}: every port answers: players get through")
    if not facts.answered:
        return fail(
            check,
            f"{where}: no answer from any port",
            f"Is `tipoff doctor --listen {ports[0]}-{ports[-1]}` running there? Then a firewall (of the host, of the "
            "provider) drops UDP: open these ports. Some networks let no UDP out: try from another one, too.",
        )
    return warn(
        check,
        f"{where}: {len(facts.answered)} answer, {len(missing)} do not: {spans(missing)}",
        "Ports with a game server on them do not answer the echo. The others: open them in the firewall.",
    )


def spans(ports: Iterable[int], most: int = 8) -> str:
    """`30000-30009, 30012`."""
    parts: list[tuple[int, int]] = []
    for port in sorted(ports):
        if parts and port == parts[-1][1] + 1:
            parts[-1] = (parts[-1][0], port)
        else:
            parts.append((port, port))
    text = [str(first) if first == last else f"{first}-{last}" for first, last in parts]
    return ", ".join(text if len(text) <= most else [*text[:most], f"and {len(text) - most} more"])
