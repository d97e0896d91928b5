"""The library over HTTP: a server for programs, and a page for people. Needs the extra `web`."""
