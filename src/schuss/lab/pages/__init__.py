"""Pages that look alike: one frame, the report's style, light and dark, and a picture of any of them.

page(...)       a template of one room inside the shared frame: one HTML file that needs nothing else
picture(...)    a Plotly figure as a PNG file
"""

from schuss.lab.pages.frame import page
from schuss.lab.pages.png import picture

__all__ = ["page", "picture"]
