# Prints what R's rhdf5 sees of an HDF5 file: path, attribute ("" for the values), kind, count and sums, as readers.py digests them.
suppressMessages(library(rhdf5))
arguments <- commandArgs(trailingOnly = TRUE)
if (arguments[1] == "version") {
    cat("R ", paste(R.version$major, R.version$minor, sep = "."), ", rhdf5 ", as.character(packageVersion("rhdf5")), "\n", sep = "")
    quit()
}
file <- arguments[1]
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
