"""`make soak`: a server under mixed load for a long time, and what is left of it afterwards.

| module | what |
|---|---|
| `settings.py`, `site.py` | the site: a view for every way of working |
| `gauges.py` | what the server process says of itself |
| `client.py` | HTTP, with clients that leave at any moment |
| `kinds.py` | the requests, and what each must be answered |
| `faults.py` | ended database sessions and cut connections |
| `load.py` | who asks what, and for how long |
| `verdict.py` | whether it was well: data, log, what is left, memory |
| `picture.py` | the memory curve as a picture, and the page of docs |
| `__main__.py` | servers, order and time limit |
"""
