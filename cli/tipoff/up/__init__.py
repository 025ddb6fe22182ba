"""`tipoff up`: the whole system on this machine, on embedded defaults, until Ctrl-C.

`run.py` starts and stops it, `options.py` says how, `addresses.py` where it listens, `wiring.py` what each part is
told; `part.py` is one of its processes.
"""
