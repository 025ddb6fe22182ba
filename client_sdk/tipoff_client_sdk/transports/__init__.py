"""How a token becomes a connection: UDP (netcode) and WebSocket."""
