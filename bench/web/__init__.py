"""Web servers, stock and with aiozc, and what is asked of them."""
