"""What only bevygap's servers and clients need."""
