"""The back end `process`: a server is a child process."""
