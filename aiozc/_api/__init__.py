"""The public coroutines: arguments checked, then one transfer on one engine."""
