"""Runs httpd as a service: `python -m tipoff_matchmaker_httpd`."""

from tipoff_matchmaker_httpd.server.run import main

if __name__ == "__main__":
    main()
