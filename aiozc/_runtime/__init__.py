"""Who runs the coroutines: asyncio's loops and trio, behind one protocol; threads of our own."""
