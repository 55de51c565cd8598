"""What drives the protocol: simulation, server and node processes, and their durable store."""
