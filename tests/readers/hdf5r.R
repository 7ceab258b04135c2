# Prints what R's hdf5r sees of an HDF5 file; see digest.R.
source(file.path(dirname(sub("^--file=", "", grep("^--file=", commandArgs(), value = TRUE))), "digest.R"))
file <- begin("hdf5r")
run <- H5File$new(file, mode = "r")
visit <- function(path, thing) {
    for (name in setdiff(h5attr_names(thing), own)) show(path, name, h5attr(thing, name))
    if (inherits(thing, "H5D")) {
        show(path, "", if (length(thing$dims) == 0 || prod(thing$dims) > 0) thing$read() else numeric(0))
    } else {
        for (name in names(thing)) visit(paste(path, name, sep = "/"), thing[[name]])
    }
}
visit("", run)
