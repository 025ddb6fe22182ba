"""`tipoff token`, `tipoff gameserver`, `tipoff connect`: bare netcode, to test other implementations and networks.

`echo_client.py` measures a connection, `udp_driver.py` moves the datagrams. Nothing here needs NATS or a matchmaker.
"""
