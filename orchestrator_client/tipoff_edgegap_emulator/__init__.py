"""Emulates Edgegap: its endpoints, limits and oddities, with real game servers behind them."""

from tipoff_edgegap_emulator.deployment import Deployment, Phase
from tipoff_edgegap_emulator.effect_runner import Delivery
from tipoff_edgegap_emulator.emulator import Emulator, running_emulator
from tipoff_edgegap_emulator.fault_plan import (
    Dies,
    Drip,
    Fail,
    Garbage,
    GoesWrong,
    Hold,
    Huge,
    NeverReady,
    PlannedFault,
    Repeat,
    Silent,
    Spoil,
    Vanishes,
    empty_list,
    null_address,
    port_70000,
    without_ports,
)
from tipoff_edgegap_emulator.options import Options
from tipoff_edgegap_emulator.requests import Recorded
from tipoff_edgegap_emulator.sessions import Session, SessionStatus
from tipoff_edgegap_emulator.state import Rules

__all__ = [
    "Delivery",
    "Deployment",
    "Dies",
    "Drip",
    "Emulator",
    "Fail",
    "Garbage",
    "GoesWrong",
    "Hold",
    "Huge",
    "NeverReady",
    "Options",
    "Phase",
    "PlannedFault",
    "Recorded",
    "Repeat",
    "Rules",
    "Session",
    "SessionStatus",
    "Silent",
    "Spoil",
    "Vanishes",
    "empty_list",
    "null_address",
    "port_70000",
    "running_emulator",
    "without_ports",
]
