#!/usr/bin/env bash
# A dimension scale, the coordinate of an axis, in PyTables.
#
# Guess: PyTables opens an array of numbers of any HDF5 file, and passes over attributes whose type it does not know.
# So:    it does so for the array that has an axis with a scale, whose list of references it warns of. The scale itself has the
#        attribute REFERENCE_LIST, a compound with a reference in it, and opening that dataset fails with KeyError: 'Reference'
#        while its attributes are looked at; a walk over all nodes of the file ends there. h5py's make_scale, netCDF and xarray
#        write such an attribute for every dimension that is in use.
# Needs python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/probe.py" <<'PYTHON'
import sys, warnings
import h5py, numpy, tables

warnings.simplefilter("ignore")
path = sys.argv[1] + "/probe.h5"
with h5py.File(path, "w") as file:
    file["epoch"], file["loss"] = numpy.arange(3), numpy.ones(3)
    file["epoch"].make_scale("epoch")
    file["loss"].dims[0].attach_scale(file["epoch"])
print("PyTables", tables.__version__, "HDF5", tables.hdf5_version)
with tables.open_file(path) as file:
    print("loss:", file.get_node("/loss").read())
    try:
        file.get_node("/epoch")
        sys.exit("no longer so: the scale is opened")
    except KeyError as error:
        print("epoch:", repr(error))
PYTHON
python3 -m venv "$folder/python"
"$folder/python/bin/pip" install -q --disable-pip-version-check h5py==3.16.0 tables==3.11.1 numpy==2.4.6
"$folder/python/bin/python" "$folder/probe.py" "$folder"
