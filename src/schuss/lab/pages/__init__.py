"""Pages that look alike: `page` fills a template in one frame; `write` puts a file down whole or not at all."""

from schuss.lab.pages.atomic_write import check_writable, write
from schuss.lab.pages.frame import page

__all__ = ["check_writable", "page", "write"]
