"""HDF5's compression filters, ready for h5py on import.

`hdf5plugin` leaves a filter alone that HDF5 finds by itself, in the folders of HDF5_PLUGIN_PATH. Many laboratories
set it, often to a folder built for another HDF5, whose filters then fail within h5py. So its own are registered anyway.
"""

import hdf5plugin

hdf5plugin.register()

bitshuffle = hdf5plugin.Bitshuffle(cname="lz4")
