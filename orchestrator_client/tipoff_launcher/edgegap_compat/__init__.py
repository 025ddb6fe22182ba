"""What Edgegap tells its servers, told here to servers of this host."""
