"""The back end `docker`: each server is a container."""
