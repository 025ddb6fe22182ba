"""Starts, adopts and stops the game servers of one host: the launcher, a service over NATS.

Its errors are those of `tipoff_orchestrator_client.base`, with three of its own:

    OrchestratorError
    ├── EngineError                 the Docker engine refuses, with its HTTP status (backends/docker/engine.py)
    ├── NoCapacity
    │   └── PortInUse               another program has a port (backends/interface.py)
    └── OrchestratorUnavailable
        └── EngineUnavailable       the Docker engine does not answer (backends/docker/engine.py)

`ConfigError` and `Unavailable` of `tipoff_shared.errors` keep a launcher from starting.
"""
