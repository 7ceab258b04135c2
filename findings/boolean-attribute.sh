#!/usr/bin/env bash
# A boolean attribute of an HDF5 file in netCDF's library.
#
# Guess: h5py stores a boolean as an enumeration over int8, and a netCDF-4 file is an HDF5 file whose library has enumerations too.
#        So it shows such an attribute, at least as the int8; where it could not, it would say so.
# So:    an attribute whose enumeration has no name in the file is left out without a word: netCDF4, and xarray with its engine,
#        list the others and not this one. h5netcdf sees it, so that the same xarray call gives another result by engine, and then
#        to_netcdf refuses the data set that it read. An integer, 0 or 1, is seen by all.
# Needs python3 with venv.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat >"$folder/probe.py" <<'PYTHON'
import sys
import h5py, netCDF4, xarray

path = sys.argv[1] + "/probe.h5"
with h5py.File(path, "w", track_order=True) as file:
    file.attrs.update(boolean=True, integer=1, text="a")
print("h5py", h5py.__version__, "netCDF", netCDF4.getlibversion().split()[0], "xarray", xarray.__version__)
with netCDF4.Dataset(path) as file:
    seen = file.ncattrs()
by = {engine: xarray.open_dataset(path, engine=engine) for engine in ["netcdf4", "h5netcdf"]}
try:
    by["h5netcdf"].to_netcdf(sys.argv[1] + "/copy.nc", engine="h5netcdf")
    copied = "taken"
except Exception as error:
    copied = f"refused ({type(error).__name__})"
print("netCDF4:", seen, "xarray:", {engine: list(dataset.attrs) for engine, dataset in by.items()}, "to_netcdf:", copied)
without, all_three = ["integer", "text"], ["boolean", "integer", "text"]
is_so = [sorted(seen), sorted(by["netcdf4"].attrs), sorted(by["h5netcdf"].attrs)] == [without, without, all_three]
sys.exit(0 if is_so and copied != "taken" else "no longer so")
PYTHON
python3 -m venv "$folder/python"
"$folder/python/bin/pip" install -q --disable-pip-version-check h5py==3.16.0 netCDF4==1.7.5.1.post1 xarray==2026.9.0 h5netcdf==1.8.2
"$folder/python/bin/python" "$folder/probe.py" "$folder"
