"""The back end `process`: each server is a child process of the launcher."""
