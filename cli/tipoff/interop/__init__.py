"""Netcode by itself, to try other implementations, networks and firewalls against: connect tokens (`tipoff token`), and
two ends that echo (`tipoff gameserver`, `tipoff connect`). Neither needs NATS or a matchmaker."""
