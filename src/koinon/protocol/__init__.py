"""What server and nodes say to each other, as pure state machines."""
