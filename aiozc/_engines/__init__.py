"""What runs the transfers' chains: rings on event loops, and what stands in for them."""
