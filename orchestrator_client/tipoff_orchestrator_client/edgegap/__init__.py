"""Edgegap: game servers near the players, by deployments of ours (`edgegap`) or by its own sessions."""
