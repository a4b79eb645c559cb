"""Follows every link of the built site, to pages, pictures, scripts and files, and fails where one leads nowhere.

    python docs/check_links.py docs/_build/html             # what lies in the site itself; needs no network
    python docs/check_links.py docs/_build/html --external  # the world outside too

Links to headings are Sphinx's: one that is missing is a warning, and with it the build fails.
LinkChecker is called from Python, because its command becomes another user when root runs it, as in many containers,
and then may not read the site.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import linkcheck
from linkcheck.checker import get_url_from
from linkcheck.configuration import Configuration
from linkcheck.director import check_urls, get_aggregate


def count_broken(start: Path, external: bool = False) -> int:
    """How many links in the pages that can be reached from one are broken; each is printed."""
    linkcheck.init_i18n()
    config = Configuration()
    config.set_status_logger(None)
    config["status"] = False
    config["checkextern"] = external
    config["logger"] = config.logger_new("text", parts=["realurl", "parenturl", "result", "warning", "name"])
    config.sanitize()
    aggregate = get_aggregate(config)
    aggregate.urlqueue.put(get_url_from(start.resolve().as_uri(), 0, aggregate))
    check_urls(aggregate)
    statistics = config["logger"].stats
    return statistics.errors + statistics.warnings_printed + statistics.internal_errors


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path, help="the folder with the site")
    parser.add_argument("--external", action="store_true", help="also ask other hosts")
    options = parser.parse_args()
    if not (options.site / "index.html").is_file():
        parser.error(f"{options.site} holds no index.html; build the site first (make docs)")
    broken = count_broken(options.site / "index.html", options.external)
    if broken:
        raise SystemExit(f"{broken} links are broken.")


if __name__ == "__main__":
    main()
