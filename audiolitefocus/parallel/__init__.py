"""Several devices for the clips of one call, fed by one thread: strategies, one in each file."""
