"""The transfers where other frameworks can use them; each module needs the one that it names."""
