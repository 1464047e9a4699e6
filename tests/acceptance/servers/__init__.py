"""The same acceptance tests against each of the ASGI servers, started as real processes.

* `variants.py`: the servers, how each is started, and the one table of what a server cannot do.
* `process.py`: a server's process: started on a socket of ours, its log collected, stopped.
* `exchange.py`: HTTP/1.1 and HTTP/2 by hand, for clients that drop or do not read.
* `site/`: the Django project that they serve.
"""
