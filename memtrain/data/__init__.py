"""Sources of captioned images, the batch contract, planted duplicates, the held-out split and caches.

One file is one source; a new source is one new file with a :class:`~memtrain.data.source.SampleSource` subclass.
"""
