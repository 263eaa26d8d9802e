"""What the kernel may still touch, and the records that own it until it is done with it."""
