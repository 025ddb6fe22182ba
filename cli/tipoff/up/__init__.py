"""`tipoff up`: the whole system on this machine, with embedded defaults, until Ctrl-C.

`commands.py` holds the options, `run.py` starts and stops everything, `compose.py` says which processes there are.
"""
