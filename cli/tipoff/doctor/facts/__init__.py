"""What the doctor reads, as plain values: I/O, no opinions."""
