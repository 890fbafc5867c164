"""The report's figures, by what they answer: each function takes tables and gives one figure as SVG and PNG.

A figure grows with what it shows, up to a number of panels that can still be read; tables hold the rest.
"""
