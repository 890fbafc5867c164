"""How the way a classifier is trained changes the quality of its explanations, measured at any scale.

The data's way: config -> train -> checkpoint -> explain -> score -> store -> report.
"""

__version__ = "0.1.0"
