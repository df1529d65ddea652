"""Whether a browser sent a request because a page of another address made it, which no such page may do here.

As Go's net/http.CrossOriginProtection has it: browsers tell in headers that no page can set. What is no browser, a
program that uses the API, sends none of them.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers

PORTS = {"http": 80, "https": 443}
READING = ("GET", "HEAD", "OPTIONS")


def is_foreign(method: str, headers: Headers) -> bool:
    """Return whether a page of another address made the browser send this.

    A link to here from elsewhere is nothing foreign, nor is a picture: what reads and names no origin passes, since
    the page that asked cannot read the answer.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    # Sent over TLS and to localhost. Whatever name a proxy has put in Host, the browser knows what is one origin.
    if site is not None:
        return site not in ("same-origin", "none") and (origin is not None or method not in READING)
    if origin is None:
        return False
    # Behind a proxy, Host may be our own name for ourselves. No page can set the other header without being asked
    # first whether it may, which is refused, because that question has an origin too.
    names = [headers.get("host", ""), *",".join(headers.getlist("x-forwarded-host")).split(",")]
    return not any(_is_at(origin, name.strip()) for name in names)


def _is_at(origin: str, name: str) -> bool:
    """Return whether an origin is that of a host as the header Host names it: where it has no port, by default."""
    try:
        page = urlsplit(origin)
        host = urlsplit(f"//{name}")
        usual = PORTS.get(page.scheme)
        return bool(page.hostname) and (page.hostname, page.port or usual) == (host.hostname, host.port or usual)
    except ValueError:  # no port, or no address
        return False
