"""Zero-copy file transfers for asyncio and uvloop, on io_uring."""
