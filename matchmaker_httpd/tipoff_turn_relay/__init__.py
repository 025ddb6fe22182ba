"""The turn relay: pairs two players and passes text between them by HTTP, without a game server."""
