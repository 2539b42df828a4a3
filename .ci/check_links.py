"""Checks the links of a built site: each local page, picture and anchor is there."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what a tag leads to, and the names that lead to it."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def main(site: Path) -> int:
    """Print the broken links of a site; return how many there are."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    broken = 0
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links are those of the place where the site will stand
        for link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            file = path if not target.path else path.parent / unquote(target.path)
            file = file.resolve()
            if file.is_dir():
                file /= "index.html"
            anchor = unquote(target.fragment)
            known = pages[file].anchors if file in pages else {anchor}
            if not file.is_file() or (anchor and anchor not in known):
                print(f"{path}: {link} leads nowhere")
                broken += 1
    print(f"{len(pages)} pages, {broken} broken links")
    return broken


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]))))
