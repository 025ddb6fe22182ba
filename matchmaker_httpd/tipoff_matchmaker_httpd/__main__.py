"""`python -m tipoff_matchmaker_httpd`."""

from tipoff_matchmaker_httpd.serve import main

if __name__ == "__main__":
    main()
