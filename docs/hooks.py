"""What the site has besides the pages in docs/: the files of the checkout that they link to, notebooks as pages, and
conversations drawn.

On GitHub a page links to `../SECURITY.md`, and that one to `docs/models.md`. Here all lie in one folder.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from html import escape
from pathlib import Path
from typing import Any

from markdown import Extension, Markdown  # pyright: ignore[reportMissingImports]
from markdown.preprocessors import Preprocessor  # pyright: ignore[reportMissingImports]
from mkdocs.structure.files import File, Files  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parents[1]
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages that stand at the top of the checkout."""

LINK = re.compile(r"(?<=\]\()(?:\.\./)+(?=(?:examples/|[A-Z]+\.md))|(?<=\]\()docs/")
CONVERSATION = re.compile(r"^```conversation\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROSE = re.compile(r"^```text\n(?=(?:(?!```|.*\S {3,}\S)[^┃\n]*\n)*```$)", re.MULTILINE)
"""What was printed, without a table or columns in it: its lines may be broken."""
NOTEBOOK = re.compile(r"(?<=\]\()((?:[\w.-]+/)*[\w-]+)\.ipynb(?=\))")
LINE = re.compile(r"^(Seeker|Supporter) +(.*(?:\n {11}(?!turn ).*)*)|^ {11}(turn \d+: .*)|^(\S.*)", re.MULTILINE)


class _Shown(Preprocessor):
    """What stands after `>>>` in a docstring is Python, not three quotations within each other."""

    def run(self, lines: list[str]) -> list[str]:
        """The lines, with fences around such paragraphs."""
        text = "\n".join(lines)
        return re.sub(r"(?:^>>> .*\n?)(?:^.+\n?)*", r"```pycon\n\g<0>\n```\n", text, flags=re.MULTILINE).split("\n")


class _Showing(Extension):
    """Adds it, before fences are looked for."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Called by Markdown."""
        md.preprocessors.register(_Shown(md), "shown", 29)


def on_config(config: Any) -> Any:
    """Let docstrings show Python."""
    config.markdown_extensions.append(_Showing())
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages beside docs/, and the scripts that pages link to."""
    for name in (*BESIDE, *(f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.py")))):
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=as_markdown(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links lead to where the files lie here, and draw conversations as one knows them from a phone."""
    markdown = markdown.replace("```diagram\n", "``` { .text .diagram }\n")
    markdown = PROSE.sub("``` { .text .prose }\n", NOTEBOOK.sub(r"\1.md", LINK.sub("", markdown)))
    return CONVERSATION.sub(lambda found: drawn(found[1]), markdown)


def drawn(transcript: str) -> str:
    """HTML of what `esc_env.rendering.transcript` prints."""
    parts = []
    for role, said, verdict, ending in LINE.findall(transcript):
        text = escape(" ".join((said or verdict or ending).split()))
        parts.append(f'<p class="{role.lower() or ("verdict" if verdict else "ending")}">{text}</p>')
    return '<div class="conversation">' + "".join(parts) + "</div>"


def as_markdown(notebook: Path) -> str:
    """A notebook as a page: its texts, its code, and below each what it showed when it was last run."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts += [f"```python\n{source}\n```", *filter(None, map(_output, cell["outputs"]))]
    download = f'<a href="{notebook.name}" download>This page is a notebook</a>, to run and to change.'
    parts[0] = parts[0].replace("\n\n", f"\n\n{download}\n\n", 1)  # below its title
    return "\n\n".join(parts) + "\n"


def _output(output: Any) -> str:
    """What a cell showed: a picture, a conversation, text, or nothing."""
    data = output.get("data", {})
    for kind in ("image/png", "image/svg+xml"):
        if kind in data:
            picture = "".join(data[kind])
            coded = picture.strip() if kind == "image/png" else b64encode(picture.encode()).decode()
            return f'<p><img class="plot" alt="What the code above draws" src="data:{kind};base64,{coded}"></p>'
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    if not text:
        return ""
    talk = text.startswith("Seeker ") and "\nSupporter " in text
    return f"```{'conversation' if talk else 'text'}\n{text}\n```"
