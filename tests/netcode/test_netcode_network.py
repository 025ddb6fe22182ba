"""Clients and a server over a network that loses, reorders and repeats, with an attacker on it, in virtual time.

Hypothesis makes up the session; whatever it does, these hold all the time:

* a payload comes out at most once, at the right end, and only if it was sent there;
* no two different datagrams are ever encrypted with one key and one number;
* nobody is connected who was thrown out, and no client id is connected twice.

And when the network is well again and the timeouts have passed, both ends agree on who is connected.
"""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from tipoff_shared.netcode import (
    Address,
    Client,
    ClientState,
    Connected,
    ConnectToken,
    Dialect,
    Disconnected,
    Payload,
    PrivateKey,
    Server,
    UsedTokens,
    issue_token,
)
from tipoff_shared.netcode.virtual_network import VirtualNetwork

KEY = PrivateKey(bytes(range(32)))
HOME = Address("192.0.2.1", 40000)
TIMEOUT = 3
SLOTS = 3


class Player:
    """One client and what is known about it."""

    def __init__(self, number: int, client_id: int, token: ConnectToken, client: Client) -> None:
        self.address = Address("198.51.100.7", 50000 + number)
        self.client_id = client_id
        self.token = token
        self.client = client
        self.deaf = False
        self.sent: set[bytes] = set()  # to the server
        self.offered: set[bytes] = set()  # by the server, to the slot this player had


class Sessions(RuleBasedStateMachine):
    players: Bundle[Player] = Bundle("players")

    @initialize(
        seed=st.integers(0, 2**32),
        dialect=st.sampled_from(Dialect),
        answers=st.booleans(),
        replace=st.booleans(),
    )
    def start(self, seed: int, dialect: Dialect, answers: bool, replace: bool) -> None:
        self.dialect = dialect
        self.net = VirtualNetwork(seed, delay=0.03)
        self.server = Server(
            private_key=KEY,
            protocol_id=7,
            addresses=[HOME],
            max_clients=SLOTS,
            dialect=dialect,
            wall_clock=lambda: 1000.0 + self.net.now,
            used_tokens=UsedTokens(capacity=64),
            answer_keep_alives=answers,
            replace_connected=replace,
        )
        self.net.attach(HOME, self.server)
        self.all: list[Player] = []
        self.seated: dict[int, Player] = {}
        self.delivered: Counter[tuple[str, bytes]] = Counter()
        self.numbers: dict[tuple[Address, bool, int], bytes] = {}
        self.seen = 0
        self.count = 0

    # --- what happens ------------------------------------------------------------------------------------------------

    @rule(target=players, client_id=st.integers(1, 5))
    def join(self, client_id: int) -> Player:
        """A player dials with a fresh token; client ids repeat."""
        token = issue_token(
            KEY,
            protocol_id=7,
            client_id=client_id,
            public_addresses=[HOME],
            now=1000.0 + self.net.now,
            timeout=TIMEOUT,
            lifetime=20,
            dialect=self.dialect,
        )
        player = Player(len(self.all), client_id, token, Client(token, now=self.net.now))
        self.all.append(player)
        self.net.attach(player.address, player.client)
        return player

    @rule(player=players, times=st.integers(1, 20))
    def play(self, player: Player, times: int) -> None:
        """Some payloads up."""
        for _ in range(times):
            self.count += 1
            payload = b"up %d" % self.count
            if player.client.send(payload, self.net.now):
                player.sent.add(payload)

    @rule(index=st.integers(0, SLOTS - 1), times=st.integers(1, 20))
    def serve(self, index: int, times: int) -> None:
        """Some payloads down, confirmed or not."""
        for _ in range(times):
            self.count += 1
            payload = b"down %d" % self.count
            if self.server.send(index, payload, self.net.now):
                self.seated[index].offered.add(payload)

    @rule(player=players)
    def leave(self, player: Player) -> None:
        player.client.disconnect(self.net.now)

    @rule(index=st.integers(0, SLOTS - 1))
    def kick(self, index: int) -> None:
        self.server.disconnect(index, self.net.now)
        self.look()

    @rule(player=players)
    def crash(self, player: Player) -> None:
        """Silent and deaf from now on."""
        if not player.deaf:
            player.deaf = True
            self.net.detach(player.address)

    @rule(
        loss=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        duplication=st.sampled_from([0.0, 0.3]),
        jitter=st.sampled_from([0.0, 0.05, 0.4]),
    )
    def weather(self, loss: float, duplication: float, jitter: float) -> None:
        self.net.loss, self.net.duplication, self.net.jitter = loss, duplication, jitter

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.5, 2.0, 5.0]))
    def wait(self, seconds: float) -> None:
        # Steps short enough that the machine sees every event with the seat it belongs to.
        for _ in range(max(1, round(seconds / 0.1))):
            self.net.advance(min(seconds, 0.1))
            self.look()

    @rule(choose=st.randoms(use_true_random=False), elsewhere=st.booleans(), flip=st.booleans())
    def attack(self, choose, elsewhere: bool, flip: bool) -> None:  # type: ignore[no-untyped-def]  # a Random
        """Something recorded earlier comes again: as it was, changed, or from another address."""
        if not self.net.sent:
            return
        datagram = choose.choice(self.net.sent)
        data = bytearray(datagram.data)
        if flip:
            data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
        source = Address("203.0.113.66", 6666) if elsewhere else datagram.source
        recorded = self.net.sent
        self.net.sent = []  # what the attacker sends is not ours
        self.net.inject(bytes(data), source, datagram.target)
        self.net.sent = recorded

    # --- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def look(self) -> None:
        """Take events and compare them with what was sent."""
        if not hasattr(self, "net"):
            return
        by_address = {player.address: player for player in self.all}
        for event in self.server.events():
            if isinstance(event, Connected):
                assert event.index not in self.seated
                player = by_address[event.address]
                assert player.client_id == event.client_id
                assert player.token.tag == event.token_tag
                self.seated[event.index] = player
            elif isinstance(event, Disconnected):
                assert self.seated.pop(event.index).client_id == event.client_id
            elif isinstance(event, Payload):
                assert event.data in self.seated[event.index].sent
                self.delivered["server", event.data] += 1
        ids = [player.client_id for player in self.seated.values()]
        assert len(ids) == len(set(ids))
        for player in self.all:
            for event in player.client.events():
                if isinstance(event, Payload):
                    assert event.data in player.offered
                    self.delivered["client", event.data] += 1
        assert not self.delivered or max(self.delivered.values()) == 1

    @invariant()
    def no_number_is_used_twice(self) -> None:
        """A key belongs to one token, hence to one address, and to one direction."""
        if not hasattr(self, "net"):
            return
        for datagram in self.net.sent[self.seen :]:
            if datagram.data[0] == 0:
                continue
            down = datagram.source == HOME
            player = datagram.target if down else datagram.source
            width = datagram.data[0] >> 4
            number = int.from_bytes(datagram.data[1 : 1 + width], "little")
            assert (player, down, number) not in self.numbers
            self.numbers[player, down, number] = datagram.data
        self.seen = len(self.net.sent)

    def teardown(self) -> None:
        """The network is well again; when the timeouts have passed, both ends agree."""
        if not hasattr(self, "net"):
            return
        self.weather(0.0, 0.0, 0.0)
        self.wait(2 * TIMEOUT + 1.0)
        present = {player.address: player for player in self.all if not player.deaf}
        at_server = {entry.address: entry for entry in self.server.clients()}
        for address, player in present.items():
            connected = player.client.state is ClientState.CONNECTED
            assert connected == (address in at_server)
            if connected:
                entry = at_server[address]
                assert entry.client_id == player.client_id
                if self.dialect is Dialect.LIGHTYEAR:
                    assert player.client.client_id == entry.client_id
                else:
                    assert player.client.client_index == entry.index
        assert set(at_server) <= set(present)
        assert {entry.index for entry in at_server.values()} == set(self.seated)


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, print_blob=True)
