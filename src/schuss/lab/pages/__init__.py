"""Pages that look alike: one frame, the report's style, light and dark.

page(...)             a template of one package inside the shared frame: one HTML file that needs nothing else
write(path, ...)      a file, whole or not at all
check_writable(...)   whether it could be, before long work
"""

from schuss.lab.pages.atomic_write import check_writable, write
from schuss.lab.pages.frame import page

__all__ = ["check_writable", "page", "write"]
