"""`tipoff doctor`: checks an installation and says what to fix.

`target.py` says what it looks at, `checks.py` lists the checks, which run all at once. Each check reads facts
(`facts/`: I/O, no opinions), and a pure function judges them (`rules/`: no I/O).
"""
