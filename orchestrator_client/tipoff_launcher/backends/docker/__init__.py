"""The back end `docker`: a server is a container."""
