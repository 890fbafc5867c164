"""Everything that imports Ray: connecting, the tasks, the coordinator of a trial, the sweep's driver, its progress.

A trial's coordinator holds no slot. It starts training as a remote task on one slot, or as a group of workers on a slot
each; when training returns, these slots are free, and the coordinator starts the shards of its evaluation as tasks on
any free slot, while other trials train. Nothing ever waits for a slot that its own waiter holds, and each piece of work
is given to the cluster when the hand-off permits it, so a sweep cannot deadlock with any number of slots.
"""
