"""Decides which clients are served: their address, what one address may take, and how a request is refused.

Every service with HTTP endpoints uses it. It needs no web framework.
"""
