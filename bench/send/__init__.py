"""``python -m bench send``: every way to send a file, side by side.

How a run goes:

- Each sender has a process of its own (`worker`), so that CPU time, context switches, page faults
  and peak memory are its own; the receiver (`bench.sink`) has another, here or elsewhere.
- Each sender first sends a file whose hash is compared at the far end: one that loses bytes, or
  turns them round, is named and takes no turns. The number of bytes is compared in every turn.
- Then they take turns, round by round. A turn opens its connections, sends a little to warm them,
  and measures from the first file until the receiver has told that it has the last byte.
- A sender that is awaited has a second turn each time, not timed, in which a timer of 1 ms runs on
  its loop and its system calls are counted: both would be seen in the figures of the first.
"""
