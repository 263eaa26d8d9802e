"""``python -m bench http``: web servers that send files, each stock and with aiozc, under wrk."""
