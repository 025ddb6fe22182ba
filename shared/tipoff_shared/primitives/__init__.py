"""Holds the small mechanisms that every package uses, on the standard library only: game clients install them.

| module | what is in it |
|---|---|
| `retry` | pauses that double, a call tried several times, a loop that runs until it is cancelled |
| `single_flight` | one call per key at a time, shared by all who ask |
| `token_bucket` | rate limits, for one thing or for each key; `now` is an argument |
| `throttled_log` | a warning that may come many times a second, once per interval with its number |
| `tasks` | background tasks with an owner, handlers with a bound |
| `waiting` | several things at once, the first of several events, cancelled tasks |
| `server_certificate` | TLS with a certificate that is renewed while the listener runs |
| `udp_socket` | a UDP socket's buffers, and all that waits in one |
| `text` | the text of an exception, one bounded line |
"""
