"""Orchestrators: what starts and stops game servers, behind one interface."""
