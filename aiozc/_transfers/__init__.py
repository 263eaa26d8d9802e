"""What a transfer does next: pure state machines, without descriptors, loop or kernel."""
