"""EPUB: the chapters in reading order."""

from xml.etree.ElementTree import Element

from edge_rag.documents.archive import Archive, resolve
from edge_rag.documents.html import add_html
from edge_rag.documents.text import Builder, decode
from edge_rag.errors import DocumentError
from edge_rag.interfaces import Document

# Embedded fonts may be scrambled in any book; that hides no text.
_FONT_SCRAMBLING = {"http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"}


def read_epub(data: bytes) -> Document:
    archive = Archive(data)
    container = archive.xml("META-INF/container.xml")
    root_file = container.find(".//rootfile")
    if root_file is None:
        raise DocumentError("an EPUB that names no package file", mend="get an undamaged copy")
    package_name = root_file.get("full-path", "")
    package = archive.xml(package_name)
    locked = _locked_members(archive)
    builder = Builder()
    _add_metadata(builder, package)
    folder = package_name.rpartition("/")[0]
    missing = 0
    for target in _spine(package):
        name = resolve(folder, target)
        if name in locked:
            raise DocumentError("an EPUB locked by DRM", mend="add a copy without DRM")
        if name in archive:
            add_html(builder, decode(archive.read(name)), is_xml=True)
        else:
            missing += 1
    if missing:
        builder.warnings.append(f"{missing} chapters are missing in the file")
    return builder.finish("application/epub+zip")


def _spine(package: Element) -> list[str]:
    """Return the chapters' hrefs in reading order, without the table of contents."""
    from urllib.parse import unquote

    items = {item.get("id"): item for item in package.iterfind("./manifest/item")}
    hrefs = []
    for reference in package.iterfind("./spine/itemref"):
        item = items.get(reference.get("idref"))
        if (
            item is not None
            and "nav" not in item.get("properties", "").split()
            and "html" in item.get("media-type", "html")
        ):
            hrefs.append(unquote(item.get("href", "")).partition("#")[0])
    return list(dict.fromkeys(hrefs))


def _locked_members(archive: Archive) -> set[str]:
    encryption = archive.xml_or_none("META-INF/encryption.xml")
    locked = set()
    for entry in encryption.iter("EncryptedData") if encryption is not None else ():
        method, reference = entry.find("EncryptionMethod"), entry.find(".//CipherReference")
        if reference is not None and (method is None or method.get("Algorithm") not in _FONT_SCRAMBLING):
            locked.add(resolve("", reference.get("URI", "")))
    return locked


def _add_metadata(builder: Builder, package: Element) -> None:
    metadata = package.find("./metadata")
    if metadata is None:
        return
    builder.title = metadata.findtext("title") or ""
    creators = ", ".join(
        text for creator in metadata.iterfind("creator") if (text := "".join(creator.itertext()).strip())
    )
    builder.describe(
        author=creators,
        date=metadata.findtext("date"),
        language=metadata.findtext("language"),
        publisher=metadata.findtext("publisher"),
        description=metadata.findtext("description"),
    )
