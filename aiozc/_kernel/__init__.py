"""The only home of ctypes: liburing, the kernel's layouts, and the ring."""
