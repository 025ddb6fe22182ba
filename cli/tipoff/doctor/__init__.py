"""`tipoff doctor`: looks at an installation and says what to fix.

`target.py` says what is looked at, `checks.py` runs all checks at once; each check reads facts (network.py, udp.py,
nats.py, engine.py, games.py: I/O, no opinions) and has them judged by a pure function (rules_*.py: no I/O).
"""
