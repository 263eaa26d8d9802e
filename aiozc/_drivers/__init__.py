"""A transfer run to its end: by chains, by copying, without descriptors, or by zero-copy sends."""
