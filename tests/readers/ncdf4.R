# Prints what R's ncdf4 sees of a file: path, attribute ("" for the values), kind, count and sums, as readers.py digests them.
# ncdf4 shows the attributes of the root and of variables, not those of groups.
suppressMessages(library(ncdf4))
arguments <- commandArgs(trailingOnly = TRUE)
if (arguments[1] == "version") {
    cat("R ", paste(R.version$major, R.version$minor, sep = "."), ", ncdf4 ", as.character(packageVersion("ncdf4")), "\n", sep = "")
    quit()
}
run <- nc_open(arguments[1])
show <- function(path, name, value) {
    kind <- if (is.character(value)) "text" else "number"
    count <- length(value)
    numbers <- if (kind == "text") as.integer(charToRaw(enc2utf8(paste(value, collapse = "\n")))) else as.vector(value)
    numbers <- as.double(numbers)
    numbers[is.nan(numbers)] <- 0.5
    weights <- (seq_along(numbers) - 1) %% 97 + 1
    cat(path, name, kind, count, sprintf("%.17g", c(sum(numbers), sum(numbers * weights), sum(abs(numbers)))), sep = "\t")
    cat("\n")
}
root <- ncatt_get(run, 0)
for (name in names(root)) show("", name, root[[name]])
coordinates <- names(Filter(function(dimension) dimension$create_dimvar, run$dim))
for (path in c(names(run$var), coordinates)) {
    found <- ncatt_get(run, path)
    for (name in names(found)) show(path, name, found[[name]])
    show(path, "", ncvar_get(run, path))
}
