"""How good the model is: on held-out data of the server and of the nodes."""
