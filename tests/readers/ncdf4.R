# Prints what R's ncdf4 sees of a file; see digest.R.
# ncdf4 shows the attributes of the root and of variables, not those of groups.
source(file.path(dirname(sub("^--file=", "", grep("^--file=", commandArgs(), value = TRUE))), "digest.R"))
file <- begin("ncdf4")
run <- nc_open(file)
root <- ncatt_get(run, 0)
for (name in names(root)) show("", name, root[[name]])
coordinates <- names(Filter(function(dimension) dimension$create_dimvar, run$dim))
for (path in c(names(run$var), coordinates)) {
    found <- ncatt_get(run, path)
    for (name in names(found)) show(path, name, found[[name]])
    show(path, "", ncvar_get(run, path))
}
