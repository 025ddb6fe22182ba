"""Checks and configures applications and versions at Edgegap."""
