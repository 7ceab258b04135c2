# Prints what R's rhdf5 sees of an HDF5 file; see digest.R.
source(file.path(dirname(sub("^--file=", "", grep("^--file=", commandArgs(), value = TRUE))), "digest.R"))
file <- begin("rhdf5")
attributes_of <- function(path) {
    found <- h5readAttributes(file, path, bit64conversion = "double")
    for (name in setdiff(names(found), own)) show(path, name, found[[name]])
}
attributes_of("/")
things <- h5ls(file)
for (row in seq_len(nrow(things))) {
    path <- paste(sub("/$", "", things$group[row]), things$name[row], sep = "/")
    attributes_of(path)
    if (things$otype[row] == "H5I_DATASET") show(path, "", h5read(file, path, bit64conversion = "double"))
}
