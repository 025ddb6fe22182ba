"""`tipoff secrets`: the secrets of an installation in one directory, made once and replaced one at a time.

`layout.py` lists the files, `directory.py` makes and replaces them: nats-server's users files with `nats_files.py`, its
certificates with `nats_tls.py` and `certificates.py`. Only `files.py` writes.
"""
