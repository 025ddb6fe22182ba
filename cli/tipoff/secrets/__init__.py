"""The secrets of an installation, in one directory: made once, kept, replaced one at a time.

`layout.py` says which files there are, `directory.py` makes and replaces them: the files for nats-server by
`nats_files.py`, its certificates by `nats_tls.py` and `certificates.py`. `files.py` alone writes.
"""
