"""The launcher: the small service that alone starts game servers on its host."""
