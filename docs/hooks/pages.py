"""Pages that are not in docs/: documents elsewhere in the repository, files that a page links to, and the reference."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from links import PICTURES, PROJECT, ROOT, local_links, place, target_of
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify

DOCUMENTS = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("benchmarks/README.md", "benchmarks/RESULTS.md", "slurm/README.md"),
)
"""Documents outside docs/ that have an entry of their own in the navigation."""

REFERENCE = "reference"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".json": "json", ".toml": "toml", ".sbatch": "bash"}
LONGEST = 60_000
"""Characters of a linked file that a page shows."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors of headings are those that GitHub makes, so that a link works in both."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages, and put the pages of a folder in the place of its entry in the navigation."""
    for document in DOCUMENTS:
        add(files, config, f"{PROJECT}/{document}", (ROOT / document).read_text(encoding="utf-8"))
    for path in linked_files(files):
        picture = path.endswith(PICTURES)
        add(files, config, place(path), (ROOT / path).read_bytes() if picture else listing(path))
    for name, text in reference_pages():
        add(files, config, f"{REFERENCE}/{name}", text)
    config.nav = filled(config.nav, files, set(paths_in(config.nav)))
    return files


def add(files: Files, config: MkDocsConfig, name: str, text: str | bytes) -> None:
    """Add one generated page or picture.

    Args:
        files: the files of the site.
        config: the settings of the site.
        name: the page's path in docs/.
        text: its Markdown, or the bytes of the picture.
    """
    if files.get_file_from_path(name) is None:
        files.append(File.generated(config, name, content=text))


def linked_files(files: Files) -> list[str]:
    """Paths in the repository of the files outside docs/ that some page links to."""
    found = set()
    for file in files.documentation_pages():
        for link in local_links(file.content_string):
            path = target_of(file.src_uri, link)
            if (
                path is not None
                and place(path).startswith(PROJECT)
                and path not in DOCUMENTS
                and (ROOT / path).is_file()
            ):
                found.add(path)
    return sorted(found)


def listing(path: str) -> str:
    """The page that shows a file of the repository, or the names in a folder.

    Args:
        path: the path in the repository.
    """
    if (ROOT / path).is_dir():
        names = sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / path).rglob("*.*") if file.is_file())
        return f"# {path}\n\n" + "\n".join(f"- `{name}`" for name in names if "__pycache__" not in name) + "\n"
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    rest = "\n\nThe file goes on.\n" if len(text) > LONGEST else "\n"
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n`````{language}\n{text[:LONGEST].rstrip()}\n`````{rest}"


def reference_pages() -> Iterator[tuple[str, str]]:
    """Name and text of the reference's pages: one for each package, one for each module."""
    packages: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "memtrain").rglob("*.py")):
        packages.setdefault(path.parent.relative_to(ROOT).as_posix().replace("/", "."), []).append(path)
    overview = [f"| [`{name}`]({name}.md) | {summary(paths)} |" for name, paths in packages.items()]
    intro = "Every module of memtrain, by package. Each page is made of the docstrings in the code."
    yield "index.md", page("Python reference", f"{intro}\n\n{table('package', overview)}")
    for name, paths in packages.items():
        modules = [path for path in paths if path.stem != "__init__"]
        rows = [f"| [`{path.stem}`]({name}/{path.stem}.md) | {first_line(path)} |" for path in modules]
        own = (
            f"::: {name}\n    options: {{members: false}}\n"
            if (ROOT / name.replace(".", "/") / "__init__.py").exists()
            else ""
        )
        yield f"{name}.md", page(name, f"{own}\n{table('module', rows) if rows else ''}")
        for path in modules:
            above = f"In [`{name}`](../{name}.md)."
            yield f"{name}/{path.stem}.md", page(f"{name}.{path.stem}", f"{above}\n\n::: {name}.{path.stem}\n")


def page(title: str, body: str) -> str:
    """A page of the reference; the search puts it after the pages that explain."""
    return f"---\nsearch: {{boost: 0.5}}\n---\n\n# {title}\n\n{body}"


def table(what: str, rows: list[str]) -> str:
    """A table of names and what they are."""
    return "\n".join([f"| {what} | what it is |", "|---|---|", *rows]) + "\n"


def summary(paths: list[Path]) -> str:
    """The first line of a package's docstring; nothing where the package has none."""
    return next((first_line(path) for path in paths if path.stem == "__init__"), "")


def first_line(path: Path) -> str:
    """The first sentence of a module's docstring, as the cell of a table."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def filled(entry: Any, files: Files, named: set[str]) -> Any:
    """An entry of the navigation with the pages of its folder, where it names a folder.

    Args:
        entry: a path, a list of entries, or titles with their entries.
        files: the files of the site.
        named: the paths that have an entry of their own.
    """
    if isinstance(entry, dict):
        return {title: filled(value, files, named) for title, value in entry.items()}
    if isinstance(entry, list):
        parts = [filled(value, files, named) for value in entry]
        return [one for part in parts for one in (part if isinstance(part, list) else [part])]
    if not entry.endswith("/"):
        return entry
    names = [file.src_uri for file in files.documentation_pages() if file.src_uri.rpartition("/")[0] == entry[:-1]]
    return sorted({*names} - named, key=lambda name: (not name.endswith("/index.md"), name))


def paths_in(entry: Any) -> Iterator[str]:
    """The paths of an entry of the navigation."""
    if isinstance(entry, str):
        yield entry
    else:
        for value in entry.values() if isinstance(entry, dict) else entry:
            yield from paths_in(value)
