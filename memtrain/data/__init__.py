"""Sources of captioned images, the batch contract, planted duplicates, the held-out split and caches.

Each source is one file with a subclass of :class:`~memtrain.data.source.SampleSource`. A new source is one new file.
"""
