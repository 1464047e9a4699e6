"""`make bank`: transfers between accounts in many styles, over HTTP, while everything fails.

Clients ask a server under uvicorn and uvloop for transfers and leave at random moments. Meanwhile
the server's process, the database's sessions and the database's server are ended, at once or
politely, and come back. At the end every account has what the audit rows say, and

- a transfer that was acknowledged has one audit row, and was applied once;
- one that was not acknowledged has one and was applied wholly, or has none and was not;
- what a hook wrote is there once for each acknowledged transfer, and never without a transfer.

| module | what |
|---|---|
| `models.py`, `settings.py`, `urls.py` | the site |
| `moving.py`, `styles.py`, `plain.py` | a transfer, and the ways to make one |
| `server.py` | the process that serves it |
| `load.py` | clients, and what they were told |
| `disturb.py` | what goes wrong meanwhile |
| `verdict.py` | accounts and audit rows against what was told |
| `__main__.py` | order and time limit |
"""
