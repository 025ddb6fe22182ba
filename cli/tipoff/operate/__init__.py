"""Commands for operators: `status` and `watch` show a running system, `kick` and `drain` act on it."""
