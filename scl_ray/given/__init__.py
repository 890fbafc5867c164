"""Networks that were trained elsewhere: read from their weights, explained and scored like the trials of a sweep.

A given network is a trial that needs no training. It lies in the same store, is evaluated in the same shards and stands
in the same report.
"""
