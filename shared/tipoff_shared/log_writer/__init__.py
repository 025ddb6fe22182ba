"""Keeps the logs of processes within a bound that holds at every moment, in a process that outlives its owner.

A process writes into a named pipe; one small process for each directory (process.py) reads all pipes in it, and writes
and rotates the files. `client.py` starts that process, starts it again when it dies, and makes the pipes.
"""
