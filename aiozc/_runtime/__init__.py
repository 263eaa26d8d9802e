"""What runs the coroutines, asyncio's loops or trio, behind one protocol; threads of our own."""
