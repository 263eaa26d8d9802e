"""Ways to send a file over a socket, and the process that one of them runs in."""
