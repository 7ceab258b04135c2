#!/usr/bin/env python3
"""Opens every group of run files in every reader that is installed, and compares what it sees with what h5py sees.

    python tests/readers/readers.py [--copies DIR] [--need NAME]... FILE...

A reader is a function from a file to what it sees: for each attribute, and for the values of each dataset, a digest of numbers
or of text. h5py's own view is the reference. Prints one table: readers by files, each cell "attributes, datasets" seen, or what
is missing; ends with status 1 if a reader sees less than it should, or if one that is needed is not installed. With --copies,
netCDF tools and xarray write each file again into DIR, and every copy is held against its original.
"""

import argparse
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import warnings

import h5py
import numpy

# What HDF5's dimension scales and netCDF add to objects; no attribute of hpml's.
OWN = ["CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_NCProperties", "_Netcdf4Dimid", "_Netcdf4Coordinates", "_FillValue"]
HERE = os.path.dirname(os.path.abspath(__file__))


class LeftOut(Exception):
    """The reader is not installed."""


def digest(value):
    """Kind, number of values, their sum, and their sum weighted by place, which changes with the order."""
    if isinstance(value, (bytes, str)):
        value = [value]
    array = numpy.asarray(value).ravel()
    if array.dtype.kind in "OSUT":
        texts = [text if isinstance(text, bytes) else str(text).encode() for text in array.tolist()]
        kind, count = "text", len(texts)
        array = numpy.frombuffer(b"\n".join(texts), dtype=numpy.uint8)
    else:
        kind, count = "number", array.size
    array = array.astype(float)
    array = numpy.where(numpy.isnan(array), 0.5, array)
    weights = numpy.arange(array.size) % 97 + 1
    return kind, count, float(array.sum()), float((array * weights).sum()), float(numpy.abs(array).sum())


def same(a, b):
    """Whether two digests are equal up to the rounding of a sum in another order. A 64-bit integer may come as a double."""
    near = all(abs(x - y) <= 1e-9 * 97 * max(a[4], 1e-300) for x, y in zip(a[2:4], b[2:4]))
    return a[:2] == b[:2] and near


def by_h5py(file):
    seen = {}

    def visit(path, thing):
        for name, value in thing.attrs.items():
            if name not in OWN:
                seen[path, name] = digest(value)
        if isinstance(thing, h5py.Dataset) and not is_bare_dimension(thing):
            seen[path, ""] = digest(thing.asstr()[()] if h5py.check_string_dtype(thing.dtype) else thing[()])

    with h5py.File(file) as run:
        visit("", run)
        run.visititems(visit)
    return seen


def is_bare_dimension(dataset):
    name = dataset.attrs.get("NAME", b"")
    name = name.decode() if isinstance(name, bytes) else name
    return name.startswith("This is a netCDF dimension but not a netCDF variable")


def groups_of(file):
    groups = [""]
    with h5py.File(file) as run:
        run.visititems(lambda path, thing: groups.append(path) if isinstance(thing, h5py.Group) else None)
    return groups


def join(group, name):
    return f"{group}/{name}" if group else name


def module(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LeftOut(name) from error


def by_netcdf4(file):
    netcdf4 = module("netCDF4")
    seen = {}

    def attributes(path, thing):
        seen.update({(path, name): digest(thing.getncattr(name)) for name in thing.ncattrs() if name not in OWN})

    with netcdf4.Dataset(file) as run:
        run.set_auto_mask(False)
        for path in groups_of(file):
            group = run[path] if path else run
            attributes(path, group)
            for name, variable in group.variables.items():
                attributes(join(path, name), variable)
                seen[join(path, name), ""] = digest(variable[...])
    return seen


def of_dataset(seen, path, dataset):
    """Adds what xarray made of a group."""
    seen.update({(path, name): digest(value) for name, value in dataset.attrs.items()})
    for name, variable in dataset.variables.items():
        seen[join(path, name), ""] = digest(variable.values)
        seen.update({(join(path, name), key): digest(value) for key, value in variable.attrs.items()})
    return seen


def by_xarray(engine):
    def read(file):
        xarray, _ = module("xarray"), module(engine.replace("netcdf4", "netCDF4"))
        seen = {}
        for path in groups_of(file):
            with xarray.open_dataset(file, group=path or None, engine=engine) as dataset:
                of_dataset(seen, path, dataset)
        return seen

    return read


def by_datatree(engine):
    def read(file):
        xarray, _ = module("xarray"), module(engine.replace("netcdf4", "netCDF4"))
        seen = {}
        with xarray.open_datatree(file, engine=engine) as tree:
            for node in tree.subtree:
                of_dataset(seen, node.path.strip("/"), node.to_dataset(inherit=False))
        return seen

    return read


def by_pytables(file):
    tables = module("tables")
    seen = {}
    with tables.open_file(file) as run:
        for path in sorted({path for path, _ in by_h5py(file)} - set(coordinates_of(file))):
            node = run.get_node("/" + path)
            for name in node._v_attrs._v_attrnamesuser:
                if name not in OWN and node._v_attrs[name] is not None:
                    seen[path, name] = digest(node._v_attrs[name])
            if isinstance(node, tables.Array):
                seen[path, ""] = digest(node.read())
    return seen


def by_ncdump(file):
    """What ncdump's text says: attributes with their values, and the names of the variables."""
    seen, groups, statement = {}, [], ""
    for line in output(["ncdump", "-h", file]).splitlines():
        start = re.match(r"\s*group: (\S+) {", line)
        if start or re.match(r"\s*} // group", line):
            groups = [*groups, start[1]] if start else groups[:-1]
            continue
        statement += line
        if not line.endswith(" ;"):
            statement = statement if re.match(r"\s*(string )?\S* ?:\S+ = ", statement) else ""
            continue
        attribute = re.match(r"\s*(?:string )?([^:\s]*) ?:(\S+) = (.*) ;$", statement)
        variable = re.match(r"\s*\w+ ([^\s(=]+)(\(.*\))? ;$", statement)
        statement = ""
        if attribute:
            place, name, value = attribute.groups()
            texts = re.findall(r'"((?:[^"\\]|\\.)*)"', value)
            numbers = [float(re.sub(r"[A-Za-z]+$", "", word)) for word in value.split(", ")] if not texts else []
            texts = [re.sub(r"\\(.)", lambda escape: {"n": "\n", "t": "\t"}.get(escape[1], escape[1]), text) for text in texts]
            seen["/".join([*groups, *([place] if place else [])]), name] = digest(texts or numbers)
        elif variable:
            seen["/".join([*groups, variable[1]]), ""] = None
    return {key: value for key, value in seen.items() if key[1] not in OWN}


def by_script(*command):
    """A reader in another language, which prints a line per attribute and dataset: path, name, kind, count and sums."""

    def read(file):
        seen = {}
        lines = [line for line in output([*command, file]).splitlines() if "\t" in line]  # ncdf4 writes warnings among them
        for line in lines:
            path, name, kind, count, *sums = line.split("\t")
            seen[path.strip("/"), name] = (kind, int(count), *map(float, sums))
        return seen

    return read


def output(command):
    if shutil.which(command[0]) is None:
        raise LeftOut(command[0])
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    absent = re.search(r"there is no package called|package .* (?:is not installed|could not be found)", run.stderr)
    if run.returncode != 0 and absent:
        raise LeftOut(run.stderr.strip().splitlines()[0])
    if run.returncode != 0:
        raise RuntimeError(f"{command[0]}: {' '.join(run.stderr.split())[:300]}")
    return run.stdout


def script(name):
    return os.path.join(HERE, name)


def coordinates_of(file):
    """Datasets that are dimension scales."""
    with h5py.File(file) as run:
        found = []
        run.visititems(lambda path, thing: found.append(path) if isinstance(thing, h5py.Dataset) and thing.is_scale else None)
        return found


# Limits of a reader that no file of dimension scales and texts avoids: which of the reference's keys it cannot show.
def beyond_pytables(file, reference):
    texts = [(path, name) for (path, name), value in reference.items() if name == "" and value[0] == "text"]
    coordinates = coordinates_of(file)
    return texts + [key for key in reference if key[0] in coordinates]


def beyond_ncdf4(file, reference):
    """ncdf4 has no call for the attributes of a group, and opens no file with a number in compact storage."""
    with h5py.File(file) as run:
        found = []
        run.visititems(lambda _, thing: found.append(isinstance(thing, h5py.Dataset) and thing.id.get_create_plist().get_layout()))
    if any(layout is not False and layout == h5py.h5d.COMPACT for layout in found):
        return list(reference)
    return [key for key in reference if key[1] and key[0] and (key[0], "") not in reference]


def beyond_octave(file, reference):
    """Its netcdf package has no text of variable length."""
    return [key for key, value in reference.items() if value[0] == "text"]


def python(*packages):
    return lambda: ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def program(command):
    """Version by the script of a reader, or by the usage of a program."""

    def ask():
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
        found = re.search(r"netcdf library version (\S+)", run.stderr)
        return f"netCDF {found[1]}" if found else run.stdout.strip().splitlines()[-1]

    return ask


R = {name: ("Rscript", script(f"{name}.R")) for name in ["rhdf5", "hdf5r", "ncdf4"]}
OCTAVE = ("octave-cli", "--no-gui", "--quiet", script("netcdf.m"))

# Name: what it sees, what is beyond it, its version.
READERS = {
    "h5py": (by_h5py, None, lambda: f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}"),
    "netCDF4": (by_netcdf4, None, lambda: python("netCDF4")() + f", netCDF {module('netCDF4').getlibversion().split()[0]}"),
    "xarray, netcdf4": (by_xarray("netcdf4"), None, python("xarray")),
    "xarray, h5netcdf": (by_xarray("h5netcdf"), None, python("xarray", "h5netcdf")),
    "xarray tree, netcdf4": (by_datatree("netcdf4"), None, python("xarray")),
    "xarray tree, h5netcdf": (by_datatree("h5netcdf"), None, python("xarray", "h5netcdf")),
    "PyTables": (by_pytables, beyond_pytables, lambda: python("tables")() + f", HDF5 {module('tables').hdf5_version}"),
    "ncdump": (by_ncdump, None, program(["ncdump"])),
    "R, rhdf5": (by_script(*R["rhdf5"]), None, program([*R["rhdf5"], "version"])),
    "R, hdf5r": (by_script(*R["hdf5r"]), None, program([*R["hdf5r"], "version"])),
    "R, ncdf4": (by_script(*R["ncdf4"]), beyond_ncdf4, program([*R["ncdf4"], "version"])),
    "Octave, netcdf": (by_script(*OCTAVE), beyond_octave, program([*OCTAVE, "version"])),
}


def missing(reference, seen):
    """Names of what `seen` lacks or shows otherwise."""
    wrong = []
    for (path, name), value in reference.items():
        place = f"/{path}" + (f"@{name}" if name else "")
        if (path, name) not in seen:
            wrong.append(f"{place} is missing")
        elif seen[path, name] is not None and not same(value, seen[path, name]):
            wrong.append(f"{place} is {seen[path, name][:3]} instead of {value[:3]}")
    return wrong


def copies_of(file, folder):
    """Writes the file again by everything that can; yields name and path of each copy."""
    stem = os.path.splitext(os.path.basename(file))[0]
    try:
        xarray, _, _ = module("xarray"), module("netCDF4"), module("h5netcdf")
        for reader, writer in [("netcdf4", "netcdf4"), ("netcdf4", "h5netcdf"), ("h5netcdf", "h5netcdf"), ("h5netcdf", "netcdf4")]:
            path = os.path.join(folder, f"{stem}-{reader}-{writer}.h5")
            with xarray.open_datatree(file, engine=reader) as tree:
                tree.to_netcdf(path, engine=writer)
            yield f"to_netcdf, {reader} to {writer}", path
    except LeftOut:
        pass
    for tool, command in {"nccopy": ["nccopy", "-4"], "ncks": ["ncks", "-O", "-h"]}.items():
        path = os.path.join(folder, f"{stem}-{tool}.h5")
        if shutil.which(tool):
            output([*command, file, path])
            yield tool, path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", metavar="DIR", help="have netCDF tools write each file again into this folder")
    parser.add_argument("--need", metavar="NAME", action="append", default=[], help="a reader that must be installed")
    parser.add_argument("files", nargs="+", metavar="FILE")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    failures = []
    names = [os.path.splitext(os.path.basename(file))[0] for file in args.files]
    names = ["checkpoint" if name.startswith("step-") else name for name in names]
    references = [by_h5py(file) for file in args.files]
    print("| reader | version |", " | ".join(names), "|\n|---|---|" + "---|" * len(names))
    for reader, (see, limit, version) in READERS.items():
        cells = []
        for name, file, reference in zip(names, args.files, references):
            beyond = set(limit(file, reference) if limit else [])
            reference = {key: value for key, value in reference.items() if key not in beyond}
            try:
                wrong = missing(reference, see(file)) if reference else []
            except LeftOut as error:
                cells = []
                print(f"| {reader} | not installed: {error} |", flush=True)
                failures += [f"{reader}: not installed"] if reader in args.need else []
                break
            except Exception as error:  # whatever a reader says is the finding
                wrong = [f"{type(error).__name__}: {error}"]
            attributes = sum(1 for _, name in reference if name)
            cells.append(f"{attributes}, {len(reference) - attributes}" if not wrong else f"{len(wrong)} wrong")
            failures += [f"{reader}: {name}: {one}" for one in wrong[:8]]
        if cells:
            print(f"| {reader} | {version()} |", " | ".join(cells), "|", flush=True)
    if args.copies:
        for name, file, reference in zip(names, args.files, references):
            for tool, copy in copies_of(file, args.copies):
                wrong = missing(reference, by_h5py(copy))
                failures += [f"copy by {tool}: {name}: {one}" for one in wrong[:8]]
                print(f"copy of {name} by {tool}: {copy}: {len(wrong)} of {len(reference)} differ", flush=True)
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(1 if failures else 0)


main()
