"""`sock_sendfile` and `sendfile` by aiozc, as methods of a loop."""
