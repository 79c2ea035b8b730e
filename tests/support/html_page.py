"""What a page consists of: its tags, attributes, addresses and visible text."""

from html.parser import HTMLParser


class HtmlPage(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open_tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "br", "img"}:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open_tags[-1:] != ["style"]:
            self.text += data

    def urls(self) -> list[str]:
        named = ("src", "href", "data", "action", "poster", "xlink:href")
        return [str(a[name]) for _, a in self.tags for name in named if name in a]
