"""The developer's dashboard at `/_tipoff`: games, servers, sessions, logs and errors, live, with buttons.

`access.py` decides who may use it, `feed.py` what pages see, `routes.py` serves it within the httpd of `tipoff up`
(`tipoff/up/httpd.py`), `web/` is the page.
"""
