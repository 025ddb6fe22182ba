"""The turn relay: two players are paired and hand text to each other by HTTP, without a game server.

From the inside out: `messages` (what is asked and answered), `pairing` and `game` (the two state machines, pure),
`store` (their records by compare-and-set), `waiting_list` and `rooms` (the drivers), `relay` (all of it as one object),
`text`, `text_endpoint` and `json_routes` (the two ways in), `limits`, `running` (opened and closed with httpd).
"""
