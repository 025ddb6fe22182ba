"""Deadlines, retries and a circuit breaker around any orchestrator."""
