# Prints what R's hdf5r sees of an HDF5 file: path, attribute ("" for the values), kind, count and sums, as readers.py digests them.
suppressMessages(library(hdf5r))
arguments <- commandArgs(trailingOnly = TRUE)
if (arguments[1] == "version") {
    cat("R ", paste(R.version$major, R.version$minor, sep = "."), ", hdf5r ", as.character(packageVersion("hdf5r")), "\n", sep = "")
    quit()
}
run <- H5File$new(arguments[1], mode = "r")
own <- c("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST")
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
visit <- function(path, thing) {
    for (name in setdiff(h5attr_names(thing), own)) show(path, name, h5attr(thing, name))
    if (inherits(thing, "H5D")) {
        show(path, "", if (length(thing$dims) == 0 || prod(thing$dims) > 0) thing$read() else numeric(0))
    } else {
        for (name in names(thing)) visit(paste(path, name, sep = "/"), thing[[name]])
    }
}
visit("", run)
